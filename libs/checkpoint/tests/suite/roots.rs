//! Roots of every kind: what they refuse and why, prefixes, and the probe before writing.

use std::time::Duration;

use object_store::path::Path;
use polygram_checkpoint::{
    CheckpointError, Patience, Root, RunStore, Variables, list_runs, open_root, open_root_with,
};
use polygram_domain::RunName;

use crate::faulty::{Faults, Faulty};
use crate::support::{Backend, spec};

#[tokio::test]
async fn the_probe_passes_and_leaves_nothing() {
    for backend in Backend::all() {
        backend.root.probe_conditional_create().await.unwrap();
        let left: Vec<_> = futures::StreamExt::collect(backend.root.store().list(None)).await;
        assert!(left.is_empty(), "{}: {left:?}", backend.name);
    }
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let memory = Backend::memory();
    let faults = Faults { creates_overwrite: true, ..Faults::default() };
    let root = Root::of(Faulty::new(memory.root.store().clone(), 1, faults));
    let error = root.probe_conditional_create().await.unwrap_err();
    assert!(matches!(error, CheckpointError::NoConditionalCreate { .. }), "{error}");
    assert!(error.to_string().contains("If-None-Match"), "{error}");

    // The S3 client with conditional writes switched off knows none.
    let mut variables = Backend::server().variables();
    variables.push(("AWS_CONDITIONAL_PUT", "disabled"));
    let root = open_root_with("s3://suite/switched-off", &Variables::these(variables)).unwrap();
    let error = root.probe_conditional_create().await.unwrap_err();
    assert!(matches!(error, CheckpointError::NoConditionalCreate { .. }), "{error}");
}

#[tokio::test]
async fn a_prefix_is_honoured_and_separates() {
    let server = Backend::server();
    let variables = Variables::these(server.variables());
    let root = |text: &str| open_root_with(text, &variables).unwrap();
    let (here, there) = (root("s3://suite/team%20a/x/"), root("s3://suite/team%20a/y"));
    let run = RunName::new("tiny").unwrap();
    let hash = RunStore::at(here.clone(), &run).put_config("a = 1\n").await.unwrap();
    assert_eq!(list_runs(&here).await.unwrap(), [run]);
    assert_eq!(list_runs(&there).await.unwrap(), []);
    let whole = root("s3://suite");
    let path = Path::parse(format!("team a/x/runs/tiny/config/{hash}.toml")).unwrap();
    assert!(object_store::ObjectStoreExt::head(whole.store(), &path).await.is_ok());
}

#[tokio::test]
async fn a_missing_bucket_is_named() {
    let variables = Variables::these(Backend::server().variables());
    let root = open_root_with("s3://no-such-bucket/x", &variables).unwrap();
    for error in [list_runs(&root).await.unwrap_err(), root.probe_conditional_create().await.unwrap_err()] {
        assert!(matches!(error, CheckpointError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("s3://no-such-bucket/x") && text.contains("create it"), "{text}");
        assert!(!error.is_damage());
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let patience = Patience { before_first_answer: Duration::from_secs(1), ..Patience::default() };
    let root = Backend::s3_at(&format!("http://127.0.0.1:{port}")).with_patience(patience);
    let error = list_runs(&root).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CheckpointError::Refused { .. }), "{error:?}");
    assert!(text.contains("AWS_ENDPOINT_URL") && text.contains("tries"), "{text}");
}

#[tokio::test]
async fn half_of_the_credentials_are_refused_at_once() {
    let variables = Variables::these([("AWS_ACCESS_KEY_ID", "key"), ("AWS_REGION", "us-east-1")]);
    let text = open_root_with("s3://bucket", &variables).unwrap_err().to_string();
    assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
    let text = open_root_with("az://container", &Variables::these::<&str, &str>([])).unwrap_err().to_string();
    assert!(text.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{text}");
    assert!(open_root_with("gs://bucket/x", &Variables::these::<&str, &str>([])).is_ok());
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    // A file stands where a folder should be.
    std::fs::write(folder.path().join("runs"), "").unwrap();
    let root = open_root(folder.path().to_str().unwrap()).unwrap();
    let store = RunStore::at(root, &spec(&[]).name);
    let error = store.put_config("a = 1\n").await.unwrap_err();
    let CheckpointError::Store(failed) = &error else { panic!("{error:?}") };
    assert_eq!(failed.tries, 1, "{error}");
}

/// Every way of not being a usable folder has a sentence of its own, with what to do.
#[tokio::test]
async fn a_folder_that_cannot_be_used_says_which_way() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
    for (root, words) in [
        (path("file"), "is a file and not a folder"),
        (path("file/below"), "a part of"),
        (path("absent"), "does not exist; `polygram train` makes it"),
        (path("link"), "does not exist"),
        ("minio://bucket/x".to_owned(), "no backend for minio://; use a folder, file:///path, s3://"),
    ] {
        let error = open_root(&root).unwrap_err();
        assert!(error.to_string().contains(words) && error.is_of_root(), "{root}: {error}");
    }
    for (root, words) in
        [(path("file"), "is a file and not a folder"), (path("file/below"), "a part of the path is a file")]
    {
        let error = polygram_checkpoint::create_root(&root).unwrap_err();
        assert!(error.to_string().contains(words) && error.is_of_root(), "{root}: {error}");
    }
    // Permissions bind nobody who may override them.
    std::fs::create_dir(path("closed")).unwrap();
    std::fs::set_permissions(path("closed"), std::fs::Permissions::from_mode(0o0)).unwrap();
    if std::fs::read_dir(path("closed")).is_err() {
        for error in [
            open_root(&path("closed")).unwrap_err(),
            open_root(&path("closed/below")).unwrap_err(),
            polygram_checkpoint::create_root(&path("closed/below")).unwrap_err(),
        ] {
            assert!(error.to_string().contains("this user may not"), "{error}");
        }
    }
    std::fs::set_permissions(path("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Without any credential the client would ask a metadata service that a machine at home does not have.
#[tokio::test]
async fn unset_credentials_are_named() {
    let patience = Patience { before_first_answer: Duration::from_secs(1), ..Patience::default() };
    // A port that was free a moment ago stands for the machine's metadata service.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metadata = format!("http://127.0.0.1:{port}");
    let variables = [("AWS_REGION", "us-east-1"), ("AWS_METADATA_ENDPOINT", metadata.as_str())];
    let root = open_root_with("s3://suite/x", &Variables::these(variables)).unwrap().with_patience(patience);
    let text = list_runs(&root).await.unwrap_err().to_string();
    assert!(text.contains("no credentials were found: set AWS_ACCESS_KEY_ID"), "{text}");
    assert!(text.contains("s3://suite/x"), "{text}");
}
