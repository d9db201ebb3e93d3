//! A live line on a terminal; nothing where there is none.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

const REDRAWN: Duration = Duration::from_millis(200);

/// Is there until it is dropped, and leaves the terminal clean.
pub struct Line(Option<JoinHandle<()>>);

impl Line {
    /// Shows what the text says each time it is asked.
    pub fn show(text: impl Fn() -> String + 'static) -> Self {
        let drawn = std::io::stderr().is_terminal();
        Self(drawn.then(|| tokio::task::spawn_local(draw(text))))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(drawing) = self.0.take() {
            drawing.abort();
        }
    }
}

async fn draw(text: impl Fn() -> String) {
    let bar = Bar(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.0.set_style(style);
    }
    let mut ticks = tokio::time::interval(REDRAWN);
    loop {
        ticks.tick().await;
        bar.0.set_message(text());
        bar.0.tick();
    }
}

/// Goes with the task that draws it.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
