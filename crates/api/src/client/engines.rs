//! What people ask the engines of databases and topics.

use bytes::Bytes;
use http::{HeaderMap, Method};
use model::ids::{ProjectName, ResourceName};
use model::state::{DeadLetters, Discarded, EngineStatus, Redriven, Table};

use super::{Client, Error, request};
use crate::wire;

/// Which of many things of a topic.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Those after this position.
    pub after: u64,
    pub limit: u32,
}

impl Client {
    pub async fn engine_status(
        &self,
        project: &ProjectName,
        engine: &ResourceName,
    ) -> Result<EngineStatus, Error> {
        self.get(&path(project, engine, "status")).await
    }

    pub async fn messages(
        &self,
        project: &ProjectName,
        topic: &ResourceName,
        range: &Range,
    ) -> Result<wire::Messages<wire::Message>, Error> {
        self.get(&path(
            project,
            topic,
            &format!("messages?{}", range.query()),
        ))
        .await
    }

    pub async fn dead_letters(
        &self,
        project: &ProjectName,
        topic: &ResourceName,
        consumer: &ResourceName,
        range: &Range,
    ) -> Result<wire::Messages<wire::DeadLetter>, Error> {
        let ask = format!("dead?consumer={consumer}&{}", range.query());
        self.get(&path(project, topic, &ask)).await
    }

    /// Delivers dead letters anew.
    pub async fn redrive(
        &self,
        project: &ProjectName,
        topic: &ResourceName,
        letters: &DeadLetters,
    ) -> Result<Redriven, Error> {
        self.exchange(
            Method::POST,
            &path(project, topic, "redrive"),
            letters,
            None,
        )
        .await
    }

    /// Gives dead letters up.
    pub async fn discard(
        &self,
        project: &ProjectName,
        topic: &ResourceName,
        letters: &DeadLetters,
    ) -> Result<Discarded, Error> {
        self.exchange(
            Method::POST,
            &path(project, topic, "discard"),
            letters,
            None,
        )
        .await
    }

    /// Publishes one message: its attributes are headers, as CloudEvents over HTTP has them.
    pub async fn publish(
        &self,
        project: &ProjectName,
        topic: &ResourceName,
        attributes: HeaderMap,
        data: impl Into<Bytes>,
    ) -> Result<wire::Published, Error> {
        let mut request = request(Method::POST, &path(project, topic, "messages"), data);
        request.headers_mut().extend(attributes);
        let answer = self.send(request).await?;
        self.decode(answer).await
    }

    pub async fn tables(
        &self,
        project: &ProjectName,
        database: &ResourceName,
    ) -> Result<Vec<Table>, Error> {
        self.get(&path(project, database, "tables")).await
    }
}

impl Range {
    fn query(&self) -> String {
        let Self { after, limit } = self;
        format!("after={after}&limit={limit}")
    }
}

fn path(project: &ProjectName, engine: &ResourceName, ask: &str) -> String {
    format!("/v1/projects/{project}/engines/{engine}/{ask}")
}
