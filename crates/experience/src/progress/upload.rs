//! The progress of one upload.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use model::ids::ResourceName;
use model::units::Bytes;

/// An upload below this is too quick to show.
const SHOWN_UPLOAD: Bytes = Bytes::mebibytes(4);

/// The progress of one upload; quick ones are not shown.
pub struct Upload {
    bar: Option<ProgressBar>,
}

impl Upload {
    pub fn new(service: &ResourceName, size: Bytes) -> Self {
        if size < SHOWN_UPLOAD || !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::new(size.0).with_prefix(format!("{service}: uploading"));
        if let Ok(style) =
            ProgressStyle::with_template("  {prefix} {bar:30} {bytes}/{total_bytes} {eta}")
        {
            bar.set_style(style);
        }
        Self { bar: Some(bar) }
    }

    pub fn at(&mut self, sent: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(sent);
        if sent == total {
            bar.finish_and_clear();
        }
    }
}
