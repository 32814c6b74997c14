//! Clients of cloud stores. Credentials, endpoints and options come from the environment, and from here alone.

use std::ffi::OsString;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, Error, ObjectStore, RetryConfig};

/// Kinds of cloud stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cloud {
    /// Amazon S3 and everything that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Cloud {
    /// The store of a URL's scheme.
    pub(crate) fn of_scheme(scheme: &str) -> Option<Cloud> {
        match scheme {
            "s3" => Some(Cloud::S3),
            "gs" => Some(Cloud::Google),
            "az" => Some(Cloud::Azure),
            _ => None,
        }
    }

    /// Where its credentials and endpoint are looked for, in words.
    pub(crate) fn variables(self) -> &'static str {
        match self {
            Cloud::S3 => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (or a role of this machine), and \
                 AWS_ENDPOINT_URL for a store that is not Amazon's, with AWS_ALLOW_HTTP=true where it has no TLS"
            }
            Cloud::Google => "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT_KEY",
            Cloud::Azure => {
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or another AZURE_ credential)"
            }
        }
    }

    /// Opens `bucket`; names are below `prefix`. Nothing is asked of the store yet.
    pub(crate) fn open(
        self,
        bucket: &str,
        prefix: &Path,
        variables: &Variables,
    ) -> Result<Arc<dyn ObjectStore>, Error> {
        install_tls();
        let store: Arc<dyn ObjectStore> = match self {
            Cloud::S3 => {
                let builder = variables.configure(AmazonS3Builder::new(), "AWS_", |builder, key, value| {
                    Ok(builder.with_config(key.parse()?, value))
                });
                let builder = builder.with_bucket_name(bucket).with_retry(short_retries());
                Arc::new(builder.build()?)
            }
            Cloud::Google => {
                let builder = variables.configure(
                    GoogleCloudStorageBuilder::new(),
                    "GOOGLE_",
                    |builder, key, value| Ok(builder.with_config(key.parse()?, value)),
                );
                Arc::new(builder.with_bucket_name(bucket).with_retry(short_retries()).build()?)
            }
            Cloud::Azure => {
                let builder =
                    variables.configure(MicrosoftAzureBuilder::new(), "AZURE_", |builder, key, value| {
                        Ok(builder.with_config(key.parse()?, value))
                    });
                Arc::new(builder.with_container_name(bucket).with_retry(short_retries()).build()?)
            }
        };
        let is_whole_bucket = prefix.as_ref().is_empty();
        Ok(if is_whole_bucket { store } else { Arc::new(PrefixStore::new(store, prefix.clone())) })
    }
}

/// A client's builder that takes options.
trait Options: Clone {
    fn with_options(self, options: ClientOptions) -> Self;
}

impl Options for AmazonS3Builder {
    fn with_options(self, options: ClientOptions) -> Self {
        self.with_client_options(options)
    }
}

impl Options for GoogleCloudStorageBuilder {
    fn with_options(self, options: ClientOptions) -> Self {
        self.with_client_options(options)
    }
}

impl Options for MicrosoftAzureBuilder {
    fn with_options(self, options: ClientOptions) -> Self {
        self.with_client_options(options)
    }
}

/// Variables that say how a cloud store is reached.
#[derive(Clone, Debug)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Those of this process; what is not Unicode belongs to somebody else.
    pub fn of_process() -> Variables {
        let text =
            |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value.into_string().ok()?));
        Variables(std::env::vars_os().filter_map(text).collect())
    }

    /// These and no others.
    pub fn these<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Variables {
        Variables(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The value of the variable `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `builder` with every variable that begins with `prefix` and that it knows.
    fn configure<B: Options>(
        &self,
        builder: B,
        prefix: &str,
        with: impl Fn(B, &str, &str) -> Result<B, Error>,
    ) -> B {
        // The whole of a transfer has its own deadline; what must not last is silence.
        let options = ClientOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_read_timeout(Duration::from_secs(30))
            .with_timeout_disabled();
        let mut builder = builder.with_options(options);
        for (key, value) in self.0.iter().filter(|(key, _)| key.starts_with(prefix)) {
            if let Ok(taken) = with(builder.clone(), &key.to_ascii_lowercase(), value) {
                builder = taken;
            }
        }
        builder
    }
}

/// The client repeats a little by itself, for one part of an upload at a time; see [`crate::Patience`] for the rest.
fn short_retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(1),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: 3, retry_timeout: Duration::from_secs(20) }
}

/// TLS by ring: it compiles in seconds and needs no other compiler than C's. Somebody else's choice before is kept.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("this process has its TLS already");
        }
    });
}
