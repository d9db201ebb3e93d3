//! What a node asks its servers.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use hyper::body::Incoming;
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired};
use model::ids::{Digest, NodeName, ResourceId};

use super::{Client, Error, request};
use crate::stream::{self, BoxStream};
use crate::wire;

impl Client {
    pub async fn join(&self, join: &wire::Join) -> Result<wire::Joined, Error> {
        self.exchange(Method::POST, "/v1/join", join, None).await
    }

    pub async fn renew(&self, node: &NodeName, ask: &wire::Renew) -> Result<wire::Joined, Error> {
        self.exchange(Method::POST, &format!("/v1/nodes/{node}/renew"), ask, None)
            .await
    }

    pub async fn service_certificate(
        &self,
        node: &NodeName,
        service: &ResourceId,
        ask: &wire::CertificateRequest,
    ) -> Result<wire::CertificateAnswer, Error> {
        let path = format!("/v1/nodes/{node}/certificates/{service}");
        self.exchange(Method::POST, &path, ask, None).await
    }

    pub async fn secret_values(
        &self,
        node: &NodeName,
        service: &ResourceId,
    ) -> Result<wire::SecretValues, Error> {
        self.get(&format!("/v1/nodes/{node}/secrets/{service}"))
            .await
    }

    pub async fn heartbeat(
        &self,
        node: &NodeName,
        heartbeat: &Heartbeat,
        timeout: Duration,
    ) -> Result<HeartbeatAnswer, Error> {
        let json = serde_json::to_vec(heartbeat).expect("wire types are plain data");
        let request = request(Method::POST, &format!("/v1/nodes/{node}/heartbeat"), json);
        let exchange = async {
            let answer = self.send_within(request, timeout).await?;
            self.decode(answer).await
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.too_late(timeout)),
        }
    }

    /// What the node should run: whole at once, then whole again with each change.
    pub async fn watch_desired(
        &self,
        node: &NodeName,
    ) -> Result<BoxStream<Result<NodeDesired, stream::Error>>, Error> {
        self.watch(&format!("/v1/nodes/{node}/desired?watch=true"))
            .await
    }

    /// The bytes of an artifact from `offset` on.
    pub async fn artifact(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response<Incoming>, Error> {
        self.send(request(
            Method::GET,
            &format!("/v1/artifacts/{digest}?offset={offset}"),
            Bytes::new(),
        ))
        .await
    }
}
