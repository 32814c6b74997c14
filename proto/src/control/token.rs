//! The run's shared secret: whoever knows it may join, report and stop.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use polygram_handshake::LinkKey;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

use crate::control::error::ControlError;

/// A bearer token: 16 to 256 printable ASCII characters without spaces. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token: 32 bytes of the operating system's randomness, in hexadecimal.
    pub fn generate() -> Result<Token, ControlError> {
        let mut bytes = [0u8; 32];
        random(&mut bytes)?;
        Ok(Token(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Checks a token's form.
    pub fn new(text: &str) -> Result<Token, String> {
        let legal = (16..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if legal {
            Ok(Token(text.to_owned()))
        } else {
            Err("a token is 16 to 256 printable characters without spaces".into())
        }
    }

    /// Reads a token file: one line.
    pub fn read(path: &Path) -> Result<Token, ControlError> {
        let text = std::fs::read_to_string(path).map_err(|e| file_error(path, e))?;
        Token::new(text.trim()).map_err(|e| file_error(path, e))
    }

    /// Writes a token file that only its owner can read. An existing file is not overwritten.
    pub fn write(&self, path: &Path) -> Result<(), ControlError> {
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(self.line().as_bytes()))
            .map_err(|e| file_error(path, e))
    }

    /// The content of a token file.
    pub fn line(&self) -> String {
        format!("{}\n", self.0)
    }

    /// Whether `header` is `Bearer <this token>`; takes the same time wherever the first difference is.
    fn matches_header(&self, header: &[u8]) -> bool {
        let Some(given) = header.strip_prefix(b"Bearer ") else { return false };
        let own = self.0.as_bytes();
        let different = own.iter().zip(given).fold(0u8, |acc, (a, b)| acc | (a ^ b));
        own.len() == given.len() && different == 0
    }

    /// Checks that a call's headers carry this token. The error is `Unauthenticated`: they carry none, or another.
    pub(crate) fn authorize(&self, headers: &HeaderMap) -> Result<(), Status> {
        match headers.get("authorization") {
            Some(header) if self.matches_header(header.as_bytes()) => Ok(()),
            Some(_) => Err(Status::unauthenticated("this is not the run's token")),
            None => Err(Status::unauthenticated("the run's token is missing")),
        }
    }

    /// The key of the run's data plane: row and rank connections prove that they know it, and never send it.
    pub fn link_key(&self) -> LinkKey {
        LinkKey::of_secret(self.0.as_bytes())
    }

    /// The value of the `authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Fills `bytes` from the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), ControlError> {
    let path = Path::new("/dev/urandom");
    File::open(path).and_then(|mut file| file.read_exact(bytes)).map_err(|e| file_error(path, e))
}

pub(crate) fn file_error(path: &Path, error: impl fmt::Display) -> ControlError {
    ControlError::File { path: path.display().to_string(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_file_and_matches_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::generate().unwrap();
        token.write(&path).unwrap();
        assert!(token.write(&path).is_err(), "an existing token is kept");
        let read = Token::read(&path).unwrap();
        assert!(read.matches_header(token.header().as_bytes()));
        let header = token.header();
        for wrong in ["", "Bearer ", &header[1..], &header[..header.len() - 1], &format!("{header}0")] {
            assert!(!token.matches_header(wrong.as_bytes()), "{wrong}");
        }
        assert!(!Token::generate().unwrap().matches_header(header.as_bytes()));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn bad_token_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(Token::read(&path).unwrap_err().to_string().contains("token"));
        std::fs::write(&path, "short\n").unwrap();
        assert!(Token::read(&path).unwrap_err().to_string().contains("16 to 256"));
    }
}
