//! What the node may ask, on the engine's socket.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::routing::{get, post};
use bytes::Bytes;
use model::state::{DeadLetters, EngineStatus};
use model::units::Bytes as Size;
use serde::Deserialize;

use super::consumer::Position;
use super::engine::{Clock, Engine};
use super::event::{quoted, time};
use super::http::{Answer, Door, json, parse};
use super::problem::Problem;
use super::storage::letters::Letter;

const PAGE_DEFAULT: usize = 20;

#[derive(Clone)]
struct Admin {
    engine: Arc<Engine>,
    door: Arc<Door>,
}

pub fn router(engine: Arc<Engine>, door: Arc<Door>) -> Router {
    Router::new()
        .route("/health", get(async || "ok"))
        .route("/status", get(status))
        .route("/messages", get(messages).post(publish))
        .route("/dead", get(dead))
        .route("/redrive", post(redrive))
        .route("/discard", post(discard))
        .with_state(Admin { engine, door })
}

#[derive(Debug, Default, Deserialize)]
struct Page {
    consumer: Option<String>,
    #[serde(default)]
    after: Position,
    limit: Option<usize>,
}

/// # Errors
///
/// The file can't be read.
pub async fn of(engine: &Engine) -> Result<EngineStatus, sqlite::Error> {
    let now_ms = Clock::wall_ms();
    let mut consumers = std::collections::BTreeMap::new();
    for (name, mut status, oldest) in engine.consumers() {
        if let Some(oldest) = oldest {
            let at_ms = engine.storage.time_at(oldest).await?;
            status.oldest_ms = at_ms.map_or(0, |at_ms| now_ms.saturating_sub(at_ms));
        }
        consumers.insert(name, status);
    }
    let (hub, measure) = (engine.storage.hub(), engine.measure());
    Ok(EngineStatus::Topic {
        messages: hub.newest().saturating_sub(measure.removed) + measure.kept,
        size: Size(hub.end().saturating_sub(measure.removed_end) + measure.kept_bytes),
        consumers,
    })
}

async fn status(State(admin): State<Admin>) -> Answer {
    let answer = async {
        let status = of(&admin.engine).await?;
        Ok(json(serde_json::to_string(&status).unwrap_or_default()))
    };
    or_problem(answer.await)
}

fn or_problem(answer: Result<Answer, Problem>) -> Answer {
    answer.unwrap_or_else(|problem| problem.response())
}

async fn publish(State(admin): State<Admin>, request: Request) -> Answer {
    or_problem(admin.door.publish(request).await)
}

async fn messages(State(admin): State<Admin>, Query(page): Query<Page>) -> Answer {
    let limit = page.limit.unwrap_or(PAGE_DEFAULT);
    let source = admin.engine.source();
    let found = admin.engine.storage.messages_after(page.after, limit).await;
    let list = found.map(|found| {
        let one = |message: &super::event::Message| {
            format!(
                r#"{{"position":{},"published":"{}","event":{}}}"#,
                message.position,
                time(message.event.at_ms),
                message.to_json(&source)
            )
        };
        found.iter().map(one).collect::<Vec<_>>().join(",")
    });
    or_problem(list.map(messages_list).map_err(Problem::from))
}

async fn dead(State(admin): State<Admin>, Query(page): Query<Page>) -> Answer {
    let limit = page.limit.unwrap_or(PAGE_DEFAULT);
    let source = admin.engine.source();
    let found = admin
        .engine
        .storage
        .letters(page.consumer, page.after, limit)
        .await;
    let list = found.map(|found| {
        let one = |letter: &Letter| letter_json(letter, &source);
        found.iter().map(one).collect::<Vec<_>>().join(",")
    });
    or_problem(list.map(messages_list).map_err(Problem::from))
}

fn messages_list(list: String) -> Answer {
    json(format!(r#"{{"messages":[{list}]}}"#))
}

fn letter_json(letter: &Letter, source: &str) -> String {
    format!(
        r#"{{"consumer":{},"position":{},"attempts":{},"error":{},"died":"{}","published":"{}","event":{}}}"#,
        quoted(&letter.consumer),
        letter.message.position,
        letter.attempts,
        quoted(&letter.error),
        time(letter.died_ms),
        time(letter.message.event.at_ms),
        letter.message.to_json(source)
    )
}

async fn redrive(State(admin): State<Admin>, body: Bytes) -> Answer {
    let answer = async {
        let redriven = admin.engine.redrive(which(&body)?).await?;
        Ok(json(format!(r#"{{"redriven":{redriven}}}"#)))
    };
    or_problem(answer.await)
}

async fn discard(State(admin): State<Admin>, body: Bytes) -> Answer {
    let answer = async {
        let discarded = admin.engine.discard(which(&body)?).await?;
        Ok(json(format!(r#"{{"discarded":{discarded}}}"#)))
    };
    or_problem(answer.await)
}

/// All, where nothing is said.
fn which(body: &Bytes) -> Result<DeadLetters, Problem> {
    match body.is_empty() {
        true => Ok(DeadLetters::default()),
        false => parse(body),
    }
}
