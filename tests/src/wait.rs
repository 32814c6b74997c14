//! Waiting for something outside this process: asked again and again, until it holds or the time is up.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(25);

/// Asks until the answer is `Some`. An error ends the wait at once; so does the limit, with `what` in its message.
pub fn wait_until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", limit.as_secs_f64());
        }
        std::thread::park_timeout(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_errors_and_limits() {
        let mut asked = 0;
        let answer = wait_until("three", Duration::from_secs(5), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
        let limit = wait_until("nothing", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert!(limit.to_string().contains("nothing"));
        assert!(wait_until("x", Duration::from_secs(5), || -> Result<Option<()>> { bail!("no") }).is_err());
    }
}
