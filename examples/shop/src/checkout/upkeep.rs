//! What each copy of checkout does beside its own requests: it renews the leases of what it drives, takes up what others left, and
//! settles the stock of what is completed and writes it down, many at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

use super::attempts::Completed;
use super::saga::State;
use super::steps::Attempt;
use super::{Checkout, ToSettle};
use crate::chance;

const RENEW_EVERY: Duration = Duration::from_millis(750);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Taken up by one copy at once: each may take as long as the provider is slow.
const ORPHANS: usize = 64;
/// Settled and written down at once.
const BATCH: usize = 200;
/// How long a batch is gathered.
const GATHER: Duration = Duration::from_millis(100);

pub fn begin(checkout: &Arc<Checkout>, completed: Receiver<ToSettle>) {
    tokio::spawn(renew(Arc::clone(checkout)));
    tokio::spawn(sweep(Arc::clone(checkout)));
    tokio::spawn(settle(Arc::clone(checkout), completed));
}

async fn renew(checkout: Arc<Checkout>) {
    loop {
        sleep(RENEW_EVERY).await;
        let keys = checkout.driven_for(RENEW_EVERY);
        if !keys.is_empty()
            && let Err(error) = checkout.attempts.renew(&keys).await
        {
            eprintln!("leases: {error}");
        }
    }
}

async fn sweep(checkout: Arc<Checkout>) {
    loop {
        sleep(SWEEP_EVERY.mul_f64(0.5 + chance::fraction())).await;
        if let Err(error) = sweep_once(&checkout).await {
            eprintln!("sweep: {error}");
        }
    }
}

async fn sweep_once(checkout: &Arc<Checkout>) -> Result<(), crate::database::Error> {
    let free = checkout.sweeping.available_permits().min(ORPHANS);
    if free > 0 {
        for orphan in checkout.attempts.orphans(free as i64).await? {
            let state = State::taken_over(orphan.reason);
            let attempt = Attempt {
                key: orphan.key,
                body: None,
            };
            let checkout = Arc::clone(checkout);
            tokio::spawn(async move {
                let _place = checkout.sweeping.acquire().await;
                checkout.drive(&attempt, state, None).await;
            });
        }
    }
    let keys = checkout.attempts.unsettled(BATCH as i64).await?;
    settle_these(checkout, keys).await;
    Ok(())
}

async fn settle(checkout: Arc<Checkout>, mut completed: Receiver<ToSettle>) {
    let mut batch = Vec::new();
    while completed.recv_many(&mut batch, BATCH).await > 0 {
        let gathering = async {
            while batch.len() < BATCH && completed.recv_many(&mut batch, BATCH).await > 0 {}
        };
        let _ = timeout(GATHER, gathering).await;
        write_down(&checkout, std::mem::take(&mut batch)).await;
    }
}

/// Settles first, so that one write says both.
async fn write_down(checkout: &Checkout, batch: Vec<ToSettle>) {
    let (completed, places): (Vec<Completed>, Vec<_>) = batch
        .into_iter()
        .map(|to_settle| (to_settle.completed, to_settle.place))
        .unzip();
    let keys: Vec<String> = completed.iter().map(|c| c.key.clone()).collect();
    let settled = checkout.steps.settle(keys.clone()).await;
    if let Err(error) = &settled {
        eprintln!("settling waits: {error}");
    }
    let written = checkout.attempts.complete(&completed, settled.is_ok());
    if let Err(error) = written.await {
        eprintln!("{} ends were not written: {error}", keys.len());
    }
    let mut driven = checkout.lock();
    for key in &keys {
        driven.remove(key);
    }
    drop(driven);
    drop(places);
}

/// What fails here is found by a later sweep, of whichever copy.
async fn settle_these(checkout: &Checkout, keys: Vec<String>) {
    if keys.is_empty() {
        return;
    }
    if let Err(error) = checkout.steps.settle(keys.clone()).await {
        return eprintln!("settling waits: {error}");
    }
    if let Err(error) = checkout.attempts.settled(&keys).await {
        eprintln!("settling waits: {error}");
    }
}
