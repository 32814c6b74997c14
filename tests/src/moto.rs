//! A stand-in for Amazon S3 on this machine (moto, installed by scripts/moto.sh), one for each test program.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::repository;

/// A running server. It ends with this process, whose end closes its standard input.
#[derive(Debug)]
pub struct Moto {
    endpoint: String,
    _child: Child,
}

/// What the S3 client's environment must hold to reach a server; every region and key will do.
const VARIABLES: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "test"),
    ("AWS_SECRET_ACCESS_KEY", "test"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_ALLOW_HTTP", "true"),
];

impl Moto {
    /// The server of this test program, started at the first call.
    pub fn shared() -> Result<&'static Moto> {
        static SHARED: OnceLock<Result<Moto, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| Moto::start().map_err(|error| format!("{error:#}")));
        started.as_ref().map_err(|error| anyhow::anyhow!("no S3 server to test with: {error}"))
    }

    fn start() -> Result<Moto> {
        let scripts = repository().join("scripts");
        let found = Command::new(scripts.join("moto.sh")).stderr(Stdio::inherit()).output()?;
        ensure!(found.status.success(), "scripts/moto.sh failed; its message is above");
        let python = String::from_utf8(found.stdout)?;
        let mut child = Command::new(python.trim())
            .arg(scripts.join("moto_server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {python}"))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let endpoint = line.trim().to_owned();
        ensure!(endpoint.starts_with("http://127.0.0.1:"), "the server said {line:?}");
        Ok(Moto { endpoint, _child: child })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its address, `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        self.endpoint.trim_start_matches("http://")
    }

    /// The environment of a program that shall use it.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        VARIABLES.into_iter().chain([("AWS_ENDPOINT_URL", self.endpoint())]).collect()
    }

    /// Makes an empty bucket.
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        // The server asks for a signature's form only.
        let scope = "test/20260101/us-east-1/s3/aws4_request";
        write!(
            stream,
            "PUT /{name} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0\r\n\r\n",
            self.address()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "bucket {name} was not made: {answer}");
        Ok(())
    }
}
