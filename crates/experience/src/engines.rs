//! Databases and topics with what they say of themselves.

use api::client::{Client, Error};
use api::wire::{EngineKind, EngineView};
use futures_util::{StreamExt as _, stream};
use model::control::Reason;
use model::ids::ProjectName;
use model::state::EngineStatus;

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
    let late = engines.iter_mut().filter(|view| is_late(view));
    let asked = stream::iter(late).for_each_concurrent(AT_ONCE, async |view| {
        let answer = client.engine_status(project, &view.name).await;
        take(view, answer);
    });
    asked.await;
    Ok(engines)
}

fn is_late(view: &EngineView) -> bool {
    let silence = view.silence.as_ref();
    silence.is_some_and(|silence| silence.code == "no-answer")
}

/// What came of the longer look; of the first one nothing stays.
fn take(view: &mut EngineView, answer: Result<EngineStatus, Error>) {
    let silence = match answer {
        Ok(status) => {
            view.status = Some(status);
            view.silence = None;
            return;
        }
        Err(Error::Refused(problem)) => Reason::new(problem.code, problem.title),
        Err(error) => Reason::new("no-answer", error.to_string()),
    };
    view.silence = Some(silence);
}

#[cfg(test)]
mod tests {
    use api::problem::Problem;
    use model::compute::InstanceState;

    use super::*;

    #[test]
    fn who_was_asked_again_is_told_by_what_that_gave() {
        let status = || EngineStatus::Topic {
            messages: 7,
            size: model::units::Bytes(700),
            consumers: Default::default(),
        };
        let refused = || Problem::unavailable("not-running", "it is failed").into();
        let silent = || Error::Silent {
            address: "a".to_owned(),
            cause: "30 s".to_owned(),
        };
        for (answer, expected) in [
            (Ok(status()), None),
            (Err(refused()), Some(("not-running", "it is failed"))),
            (
                Err(silent()),
                Some(("no-answer", "the answer of a did not come: 30 s")),
            ),
        ] {
            let mut view = EngineView {
                name: "events".parse().unwrap(),
                kind: EngineKind::Topic,
                state: InstanceState::Running,
                status: None,
                silence: Some(Reason::new("no-answer", "no answer within 2s")),
                access: Default::default(),
            };
            assert!(is_late(&view));
            take(&mut view, answer);
            let silence = view.silence.as_ref();
            let silence = silence.map(|silence| (&*silence.code, &*silence.message));
            assert_eq!(silence, expected);
            assert_eq!(view.status.is_some(), expected.is_none());
        }
    }
}
