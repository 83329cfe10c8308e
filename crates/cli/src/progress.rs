//! Progress on stderr: a bar with the time left on a terminal, one line every few seconds elsewhere, nothing when quiet.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table::seconds;

/// Logs get a line for a running task at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A terminal: bars that redraw.
    Bars(MultiProgress),
    /// A file or pipe: lines.
    Lines,
    /// Nobody is watching.
    Quiet,
}

impl Progress {
    /// Bars on a terminal, lines elsewhere.
    pub fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Progress::Quiet,
            (false, true) => Progress::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8))),
            (false, false) => Progress::Lines,
        }
    }

    /// Says something that stays on the screen.
    pub fn say(&self, text: &str) {
        match self {
            // Fails only where stderr is gone; then nobody reads it.
            Progress::Bars(bars) => _ = bars.println(text),
            Progress::Lines => eprintln!("{text}"),
            Progress::Quiet => {}
        }
    }

    /// Says something that a bar shows anyway: for logs only.
    pub fn detail(&self, text: &str) {
        if let Progress::Lines = self {
            eprintln!("{text}");
        }
    }

    /// Begins a task of `total` steps.
    pub fn task(&self, name: &str, total: u64) -> Task {
        let bar = match self {
            Progress::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total));
                let template = "{prefix:<18} {bar:28.cyan/238} {percent:>3}%  {elapsed} gone, {eta} left  {wide_msg}";
                // The template is a constant; a mistake in it falls back to the plain bar.
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                bar.set_style(style.progress_chars("━╸─"));
                bar.set_prefix(name.to_owned());
                Some(bar)
            }
            _ => None,
        };
        let now = Instant::now();
        let state = Mutex::new(State { first: None, began: now, spoke: now });
        Task { name: name.to_owned(), total, lines: matches!(self, Progress::Lines), bar, state }
    }
}

/// Something under way. Dropping it removes its bar.
#[derive(Debug)]
pub struct Task {
    name: String,
    total: u64,
    lines: bool,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the task was when it was first heard of, and when: one that goes on after an interruption is not that fast.
    first: Option<(u64, Instant)>,
    began: Instant,
    spoke: Instant,
}

/// What a rest takes at the pace since `first`; `None` where nothing was done since.
fn left(first: u64, done: u64, total: u64, elapsed: Duration) -> Option<f64> {
    let since = done.checked_sub(first).filter(|&n| n > 0)?;
    Some(elapsed.as_secs_f64() * total.saturating_sub(done) as f64 / since as f64)
}

impl Task {
    /// Says how many steps are done in all, and something short about now.
    pub fn set(&self, done: u64, message: &str) {
        let Ok(mut state) = self.state.lock() else { return };
        let is_first = state.first.is_none();
        let (first, since) = *state.first.get_or_insert_with(|| (done, Instant::now()));
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_owned());
            if is_first {
                bar.reset_eta();
            }
            return;
        }
        if self.lines && state.spoke.elapsed() >= LINE_EVERY {
            state.spoke = Instant::now();
            let gone = seconds(state.began.elapsed().as_secs_f64());
            let left = left(first, done, self.total, since.elapsed());
            let left = left.map_or(String::new(), |left| format!(", {} left", seconds(left)));
            let percent = 100 * done / self.total.max(1);
            eprintln!("{}: {percent} %, {gone} gone{left}  {message}", self.name);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_goes_on_is_measured_from_where_it_was() {
        let second = Duration::from_secs(1);
        assert_eq!(left(0, 25, 100, second), Some(3.0));
        assert_eq!(left(80, 90, 100, second), Some(1.0));
        assert_eq!((left(80, 80, 100, second), left(80, 10, 100, second)), (None, None));
        assert_eq!(left(0, 120, 100, second), Some(0.0));
    }
}
