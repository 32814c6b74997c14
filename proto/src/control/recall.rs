//! The word that ends a membership from outside its run: whoever placed the member wants it elsewhere.

use std::fmt;

use tokio::sync::watch;

/// Listens for a recall. The default is never called.
#[derive(Clone, Default)]
pub struct Recall(Option<watch::Receiver<bool>>);

impl Recall {
    /// A recall that `called` becoming true calls.
    pub fn by(called: watch::Receiver<bool>) -> Recall {
        Recall(Some(called))
    }

    /// Resolves once it is called; never where the caller is gone. Dropping the future loses nothing.
    pub async fn called(&mut self) {
        if let Some(called) = &mut self.0
            && called.wait_for(|called| *called).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl fmt::Debug for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Recall" } else { "no recall" })
    }
}
