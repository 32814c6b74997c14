//! What keeps a store from doing what it is asked, by type.

use std::io;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};
use polygram_domain::FailureKind;

/// What an error of an object of this machine's disk calls its store.
pub(crate) const LOCAL: &str = "LocalFileSystem";

/// What keeps a store from doing what it is asked. Nothing is wrong with what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreProblem {
    /// The disk is full, or a quota used up.
    NoRoom,
    /// The file system is read-only.
    ReadOnly,
    /// The user or the credentials may not do this.
    Denied,
    /// The bucket, or the folder of the root, is not there.
    NoBucket,
    /// The credentials, or the clock that they are used with, are out of date.
    StaleSignature,
    /// Nothing answers where the store should be.
    Unreachable,
    /// Anything else.
    Other,
}

impl StoreProblem {
    /// What `error` is about.
    pub(crate) fn of(error: &Error) -> StoreProblem {
        let io = caused_by::<io::Error>(error).map(io::Error::kind);
        let text = error.to_string();
        let has = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
        if io.is_some_and(is_full_kind) || status(error) == Some(507) || has(&FULL) {
            StoreProblem::NoRoom
        } else if io == Some(io::ErrorKind::ReadOnlyFilesystem) {
            StoreProblem::ReadOnly
        } else if has(&NO_BUCKET) {
            StoreProblem::NoBucket
        } else if is_stale_signature(error) {
            StoreProblem::StaleSignature
        } else if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
            || io == Some(io::ErrorKind::PermissionDenied)
        {
            StoreProblem::Denied
        } else if caused_by::<HttpError>(error).is_some_and(|http| http.kind() == HttpErrorKind::Connect) {
            StoreProblem::Unreachable
        } else {
            StoreProblem::Other
        }
    }

    /// Whether a person has to change something before the same request can succeed: to start a process again does not
    /// help.
    pub fn needs_operator(self) -> bool {
        match self {
            StoreProblem::NoRoom
            | StoreProblem::ReadOnly
            | StoreProblem::Denied
            | StoreProblem::NoBucket
            | StoreProblem::StaleSignature => true,
            StoreProblem::Unreachable | StoreProblem::Other => false,
        }
    }

    /// What kind of failure a member ends with that met it.
    pub fn failure_kind(self) -> FailureKind {
        if self.needs_operator() { FailureKind::StoreUnusable } else { FailureKind::Store }
    }

    /// The problem as a sentence without an end.
    pub fn headline(self) -> &'static str {
        match self {
            StoreProblem::NoRoom => "the store has no room",
            StoreProblem::ReadOnly => "the store is read-only",
            StoreProblem::Denied => "the store denies permission",
            StoreProblem::NoBucket => "the bucket is gone",
            StoreProblem::StaleSignature => "the store takes the credentials for expired",
            StoreProblem::Unreachable => "the store cannot be reached",
            StoreProblem::Other => "the store fails",
        }
    }
}

/// Codes by which cloud stores say that there is no room.
const FULL: [&str; 3] = ["XMinioStorageFull", "<Code>QuotaExceeded", "<Code>InsufficientCapacity"];

/// Codes by which cloud stores say that there is no such bucket.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];

/// What stores say of a signature that was made too long ago, or by a clock that is wrong, and of credentials that have
/// expired. The status is not enough: 400, 401 and 403 also stand for errors that no other signature mends.
const STALE: [&str; 8] = [
    // Amazon S3 and its like
    "RequestTimeTooSkewed",
    "RequestExpired",
    "ExpiredToken",
    "TokenRefreshRequired",
    // Azure
    "Request date header too old",
    "ExpiredAuthenticationToken",
    "Signature not valid in the specified time frame",
    // Google
    "Token has expired",
];

/// Whether the store refused the signature for its age: the same request, signed anew, may succeed.
pub(crate) fn is_stale_signature(error: &Error) -> bool {
    let of_clients = matches!(
        error,
        Error::Generic { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
    );
    let text = error.to_string();
    of_clients && STALE.iter().any(|code| text.contains(code))
}

/// The status of the last answer, if the store is asked over HTTP and answered. The client tells it in words only.
pub(crate) fn status(error: &Error) -> Option<u16> {
    let text = error.to_string();
    text.split_once("status code: ")?.1.get(..3)?.parse().ok()
}

/// The nearest cause of this type.
pub(crate) fn caused_by<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let source = std::error::Error::source(error);
    std::iter::successors(source, |&cause| cause.source()).find_map(|cause| cause.downcast_ref())
}

pub(crate) fn is_full_kind(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn local(code: Errno) -> Error {
        Error::Generic { store: LOCAL, source: io::Error::from(code).into() }
    }

    fn cloud(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn problems_are_told_apart_and_say_who_can_help() {
        let denied = |text: &str| Error::PermissionDenied { path: "k".into(), source: text.into() };
        let absent = |text: &str| Error::NotFound { path: "k".into(), source: text.into() };
        for (error, problem) in [
            (local(Errno::NOSPC), StoreProblem::NoRoom),
            (local(Errno::DQUOT), StoreProblem::NoRoom),
            (cloud("non-2xx status code: 507 Insufficient Storage: x"), StoreProblem::NoRoom),
            (cloud("status code: 400 <Code>XMinioStorageFull</Code>"), StoreProblem::NoRoom),
            (local(Errno::ROFS), StoreProblem::ReadOnly),
            (local(Errno::ACCESS), StoreProblem::Denied),
            (local(Errno::PERM), StoreProblem::Denied),
            (denied("403 <Code>AccessDenied</Code>"), StoreProblem::Denied),
            (denied("403 <Code>RequestTimeTooSkewed</Code>"), StoreProblem::StaleSignature),
            (absent("404 <Code>NoSuchBucket</Code>"), StoreProblem::NoBucket),
        ] {
            assert_eq!(StoreProblem::of(&error), problem, "{error}");
            assert!(problem.needs_operator(), "{error}");
        }
        for error in [
            local(Errno::IO),
            local(Errno::STALE),
            cloud("non-2xx status code: 503 Slow Down: x"),
            absent("404 <Code>NoSuchKey</Code>"),
        ] {
            assert_eq!(StoreProblem::of(&error), StoreProblem::Other, "{error}");
            assert!(!StoreProblem::Other.needs_operator());
        }
    }
}
