//! Reads and audits the books until nothing is pending, or the time for it is over.
//!
//! Attempts end and workers follow after the last answer; someone else may be shopping. What an audit finds may so be gone in the next, and
//! only the last audit counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::audit::{Findings, Promises, audit};
use crate::ledger::{self, Attempt, Progress};
use crate::progress::Line;
use crate::send::Client;

/// Between audits at least, so that the audit is not the load.
const PAUSE: Duration = Duration::from_millis(500);

/// The last audit.
pub struct Settled {
    pub findings: Findings,
    /// Orders in the ledger, of this run and all others.
    pub orders: usize,
    pub attempts: usize,
    /// From the last answer to an audit without a finding, or to the end of patience.
    pub took: Duration,
}

/// Fails if no audit can be done in that time.
pub async fn settle(
    client: &Client,
    promises: &Promises,
    patience: Duration,
) -> Result<Settled, ledger::Error> {
    let begin = Instant::now();
    let _line = Line::show(move || {
        let (now, end) = (begin.elapsed().as_secs_f64(), patience.as_secs_f64());
        format!("{now:.0} of at most {end:.0} s   attempts end, workers follow, the books are read")
    });
    loop {
        let read = Instant::now();
        let is_last = begin.elapsed() >= patience;
        match one(client, promises, is_last).await {
            Ok(Some((findings, orders, attempts))) if is_last || findings.are_none() => {
                return Ok(Settled {
                    findings,
                    orders,
                    attempts,
                    took: begin.elapsed(),
                });
            }
            Err(error) if is_last => return Err(error),
            Ok(_) | Err(_) => {}
        }
        // A long read is followed by a long pause, but the last audit is not put off.
        let pause = PAUSE.max(read.elapsed());
        tokio::time::sleep_until((Instant::now() + pause).min(begin + patience)).await;
    }
}

/// None: attempts run, so that the other books are not worth reading yet.
async fn one(
    client: &Client,
    promises: &Promises,
    is_last: bool,
) -> Result<Option<(Findings, usize, usize)>, ledger::Error> {
    if !is_last {
        let attempts: Vec<Attempt> = ledger::read(client, "attempts").await?;
        if attempts
            .iter()
            .any(|attempt| attempt.state == Progress::Running)
        {
            return Ok(None);
        }
    }
    let ledgers = ledger::read_all(client).await?;
    let findings = audit(&ledgers, promises);
    Ok(Some((
        findings,
        ledgers.orders.len(),
        ledgers.attempts.len(),
    )))
}
