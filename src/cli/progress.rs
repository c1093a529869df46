//! Progress of long work: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Percent between two lines where there is no terminal.
const LINE_EVERY: u64 = 10;

/// Progress towards a number of bytes.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: AtomicU64,
    /// Percent at which the next line is due.
    next: AtomicU64,
}

impl Progress {
    /// Begins; says nothing unless `talk`.
    pub(super) fn new(what: &'static str, total: u64, talk: bool) -> Progress {
        let template = "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        let bar = (talk && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(total).with_message(what);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let next = AtomicU64::new(if talk { LINE_EVERY } else { u64::MAX });
        Progress {
            bar,
            what,
            total: AtomicU64::new(total),
            next,
        }
    }

    /// So much is done.
    pub(super) fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let total = self.total.load(Ordering::Relaxed);
        let percent = (done.min(total) * 100).checked_div(total).unwrap_or(0);
        if percent >= self.next.load(Ordering::Relaxed) {
            eprintln!("{}: {percent} %", self.what);
            self.next.store(
                percent - percent % LINE_EVERY + LINE_EVERY,
                Ordering::Relaxed,
            );
        }
    }

    /// There is so much to do.
    pub(super) fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// It is over.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
