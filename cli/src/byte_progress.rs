//! Progress of work that reads checkpoints: a bar on a terminal, a plain line every few seconds elsewhere, both on
//! standard error.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use polygram_checkpoint::RunStore;
use tokio::time::{Instant, MissedTickBehavior};

use crate::printer::Printer;
use crate::units;

/// The bar is drawn this often.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);
/// A line is written this often where there is no terminal; work that ends before writes none.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// What the bar shows. indicatif cuts it to the terminal's width.
const STYLE: &str = "{msg}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  eta {eta}";

/// Bytes that some stores read, out of about so many.
pub(crate) struct ByteProgress<'a> {
    what: String,
    total: u64,
    stores: Vec<(&'a RunStore, u64)>,
}

impl<'a> ByteProgress<'a> {
    /// Of reading about `total` bytes from `store`, from now on.
    pub(crate) fn new(what: impl Into<String>, total: u64, store: &'a RunStore) -> ByteProgress<'a> {
        ByteProgress { what: what.into(), total, stores: vec![(store, store.read_bytes())] }
    }

    /// The same with what another store reads.
    pub(crate) fn and(mut self, store: &'a RunStore) -> ByteProgress<'a> {
        self.stores.push((store, store.read_bytes()));
        self
    }

    /// Never more than the total: what a read touches beside what is wanted does not count.
    fn done(&self) -> u64 {
        let read = |(store, before): &(&RunStore, u64)| store.read_bytes().saturating_sub(*before);
        self.stores.iter().map(read).fold(0, u64::saturating_add).min(self.total)
    }

    /// Does `work` and shows how far it is.
    pub(crate) async fn follow<T>(&self, printer: &mut Printer, work: impl Future<Output = T>) -> T {
        if printer.is_live() {
            self.on_terminal(printer, work).await
        } else {
            self.in_lines(printer, work).await
        }
    }

    async fn on_terminal<T>(&self, printer: &mut Printer, work: impl Future<Output = T>) -> T {
        printer.end_line();
        // Work that is done at once shows nothing.
        let mut bar = None;
        let result = beside(work, DRAW_INTERVAL, || {
            let bar: &mut ProgressBar = bar.get_or_insert_with(|| self.bar());
            bar.set_position(self.done());
        })
        .await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        result
    }

    fn bar(&self) -> ProgressBar {
        let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr());
        bar.set_style(style);
        bar.set_message(self.what.clone());
        bar
    }

    async fn in_lines<T>(&self, printer: &mut Printer, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        beside(work, LINE_INTERVAL, || {
            let seconds = begun.elapsed().as_secs_f64();
            let state = State { what: &self.what, done: self.done(), total: self.total, seconds };
            printer.say(state.to_string());
        })
        .await
    }
}

/// Does `work`, and `show` every `interval` until it is done.
async fn beside<T>(work: impl Future<Output = T>, interval: Duration, mut show: impl FnMut()) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            _ = ticks.tick() => show(),
        }
    }
}

/// How far work is after some seconds.
struct State<'a> {
    what: &'a str,
    done: u64,
    total: u64,
    seconds: f64,
}

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { what, done, total, seconds } = *self;
        let share = if total == 0 { 1.0 } else { done as f64 / total as f64 };
        let speed = done as f64 / seconds.max(f64::MIN_POSITIVE);
        write!(f, "{what}: {} of {} ({})", units::bytes(done), units::bytes(total), units::percent(share))?;
        if done == 0 {
            return Ok(());
        }
        let eta = (total - done) as f64 / speed;
        write!(f, ", {}/s, eta {}", units::bytes(speed as u64), units::duration(eta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_it_is() {
        let state = |done, total, seconds| State { what: "reading tiny", done, total, seconds }.to_string();
        assert_eq!(
            state(1 << 30, 4 << 30, 10.0),
            "reading tiny: 1.00 GiB of 4.00 GiB (25%), 102 MiB/s, eta 30s"
        );
        assert_eq!(state(0, 4 << 30, 5.0), "reading tiny: 0 B of 4.00 GiB (0%)");
        assert_eq!(state(0, 0, 0.0), "reading tiny: 0 B of 0 B (100%)");
    }

    #[test]
    fn the_style_is_legal() {
        ProgressStyle::with_template(STYLE).unwrap();
    }

    #[tokio::test]
    async fn work_is_shown_until_it_is_done() {
        let shown = std::cell::Cell::new(0);
        let work = async {
            while shown.get() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            7
        };
        assert_eq!(beside(work, Duration::from_millis(1), || shown.set(shown.get() + 1)).await, 7);
        assert_eq!(beside(async { 8 }, DRAW_INTERVAL, || panic!("it was done at once")).await, 8);
    }
}
