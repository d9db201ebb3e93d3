//! Databases and topics with what they say of themselves.

use api::client::Client;
use api::wire::{EngineKind, EngineView};
use futures_util::{StreamExt as _, stream};
use model::ids::ProjectName;

use crate::failure::Failure;

/// Engines that are asked at one time.
const AT_ONCE: usize = 16;

/// Those of a kind. `status` does not wait long for them: who lists them does, on a machine that is busy.
pub async fn listed(
    client: &Client,
    project: &ProjectName,
    kind: EngineKind,
) -> Result<Vec<EngineView>, Failure> {
    let mut engines = client.status(project).await?.engines;
    engines.retain(|view| view.kind == kind);
    let is_late = |view: &EngineView| {
        let silence = view.silence.as_ref();
        silence.is_some_and(|silence| silence.code == "no-answer")
    };
    let late = engines.iter_mut().filter(|view| is_late(view));
    let asked = stream::iter(late).for_each_concurrent(AT_ONCE, async |view| {
        if let Ok(status) = client.engine_status(project, &view.name).await {
            view.status = Some(status);
            view.silence = None;
        }
    });
    asked.await;
    Ok(engines)
}
