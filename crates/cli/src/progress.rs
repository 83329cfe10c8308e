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
        let state = Mutex::new(State { done: 0, began: now, spoke: now });
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
    done: u64,
    began: Instant,
    spoke: Instant,
}

impl Task {
    /// Says how many steps are done in all, and something short about now.
    pub fn set(&self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_owned());
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        state.done = done;
        if self.lines && state.spoke.elapsed() >= LINE_EVERY {
            state.spoke = Instant::now();
            let gone = state.began.elapsed().as_secs_f64();
            let left = gone * self.total.saturating_sub(done) as f64 / done.max(1) as f64;
            let percent = 100 * done / self.total.max(1);
            eprintln!("{}: {percent} %, {} gone, {} left  {message}", self.name, seconds(gone), seconds(left));
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
