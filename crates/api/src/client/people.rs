//! Typed methods, as people, scripts and the CLI use them.

use bytes::Bytes;
use http::{Method, Request, header};
use model::boundary::AuditRecord;
use model::compute::{Release, Service};
use model::control::Rollout;
use model::ids::{Digest, NodeName, ProjectName, ResourceName};
use model::signals::{Event, LogLine};

use super::{Body, Client, Error, Unless, escape, request};
use crate::stream::{self, BoxStream};
use crate::wire;

impl Client {
    pub async fn version(&self) -> Result<wire::Version, Error> {
        self.get("/v1/version").await
    }

    pub async fn health(&self) -> Result<wire::Health, Error> {
        self.get("/v1/health").await
    }

    pub async fn whoami(&self) -> Result<wire::WhoAmI, Error> {
        self.get("/v1/whoami").await
    }

    /// Those as well that are gone but for the data that was kept.
    pub async fn projects_with_kept(&self) -> Result<wire::List<ProjectName>, Error> {
        self.get("/v1/projects?kept=true").await
    }

    pub async fn projects(&self) -> Result<wire::List<ProjectName>, Error> {
        self.get("/v1/projects").await
    }

    pub async fn apply(
        &self,
        project: &ProjectName,
        apply: &wire::Apply,
        dry_run: bool,
        idempotency_key: &str,
    ) -> Result<wire::Applied, Error> {
        let path = format!("/v1/projects/{project}/apply?dry_run={dry_run}");
        self.exchange(Method::POST, &path, apply, Some(idempotency_key))
            .await
    }

    /// The same, by who holds the deploy of that id.
    pub async fn apply_in_deploy(
        &self,
        project: &ProjectName,
        apply: &wire::Apply,
        deploy: &str,
        idempotency_key: &str,
    ) -> Result<wire::Applied, Error> {
        let path = format!("/v1/projects/{project}/apply?deploy={deploy}");
        self.exchange(Method::POST, &path, apply, Some(idempotency_key))
            .await
    }

    /// Takes the project's deploy, or says that one still holds it.
    pub async fn hold_deploy(
        &self,
        project: &ProjectName,
        id: &str,
        hold: &wire::HoldDeploy,
    ) -> Result<wire::Deploy, Error> {
        let path = format!("/v1/projects/{project}/deploys/{id}");
        self.exchange(Method::PUT, &path, hold, None).await
    }

    pub async fn end_deploy(&self, project: &ProjectName, id: &str) -> Result<bool, Error> {
        let path = format!("/v1/projects/{project}/deploys/{id}");
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    pub async fn steer_rollout(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        to: wire::Steer,
    ) -> Result<Rollout, Error> {
        let path = format!("/v1/projects/{project}/rollouts/{service}/steer");
        self.exchange(Method::POST, &path, &wire::SteerRollout { to }, None)
            .await
    }

    pub async fn status(&self, project: &ProjectName) -> Result<wire::ProjectStatus, Error> {
        self.get(&format!("/v1/projects/{project}/status")).await
    }

    /// Without asking databases and topics: for who looks again and again.
    pub async fn status_of_services(
        &self,
        project: &ProjectName,
    ) -> Result<wire::ProjectStatus, Error> {
        self.get(&format!("/v1/projects/{project}/status?engines=false"))
            .await
    }

    pub async fn instances(
        &self,
        project: &ProjectName,
    ) -> Result<wire::List<wire::InstanceView>, Error> {
        self.get(&format!("/v1/projects/{project}/instances")).await
    }

    /// A thing as it is stored, as JSON: for `get`.
    pub async fn resource(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
        name: &str,
    ) -> Result<serde_json::Value, Error> {
        let kind = kind.as_str();
        self.get(&format!("/v1/projects/{project}/{kind}/{}", escape(name)))
            .await
    }

    pub async fn service(
        &self,
        project: &ProjectName,
        name: &ResourceName,
    ) -> Result<Service, Error> {
        self.get(&format!("/v1/projects/{project}/services/{name}"))
            .await
    }

    pub async fn resources(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
    ) -> Result<wire::List<serde_json::Value>, Error> {
        self.get(&format!("/v1/projects/{project}/{}", kind.as_str()))
            .await
    }

    pub async fn delete(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
        name: &str,
        delete_data: bool,
    ) -> Result<Vec<wire::Change>, Error> {
        self.delete_as(project, kind, name, delete_data, false)
            .await
    }

    /// With `though_needed` also where others in the project need it.
    pub async fn delete_as(
        &self,
        project: &ProjectName,
        kind: wire::Kind,
        name: &str,
        delete_data: bool,
        though_needed: bool,
    ) -> Result<Vec<wire::Change>, Error> {
        let kind = kind.as_str();
        let path = format!(
            "/v1/projects/{project}/{kind}/{}?delete_data={delete_data}&though_needed={though_needed}",
            escape(name)
        );
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    pub async fn delete_project(
        &self,
        project: &ProjectName,
        delete_data: bool,
    ) -> Result<Vec<wire::Change>, Error> {
        let path = format!("/v1/projects/{project}?delete_data={delete_data}");
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    pub async fn scale(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        replicas: u32,
    ) -> Result<wire::Scaled, Error> {
        let path = format!("/v1/projects/{project}/scales/{service}");
        self.exchange(Method::PUT, &path, &wire::SetScale { replicas }, None)
            .await
    }

    pub async fn restart(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        idempotency_key: &str,
    ) -> Result<wire::Released, Error> {
        let path = format!("/v1/projects/{project}/services/{service}/restart");
        self.exchange(Method::POST, &path, &(), Some(idempotency_key))
            .await
    }

    pub async fn rollback(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        rollback: &wire::Rollback,
        idempotency_key: &str,
    ) -> Result<wire::Released, Error> {
        let path = format!("/v1/projects/{project}/services/{service}/rollback");
        self.exchange(Method::POST, &path, rollback, Some(idempotency_key))
            .await
    }

    pub async fn releases(
        &self,
        project: &ProjectName,
        service: &ResourceName,
    ) -> Result<wire::List<wire::ReleaseView>, Error> {
        self.get(&format!(
            "/v1/projects/{project}/services/{service}/releases"
        ))
        .await
    }

    pub async fn release(
        &self,
        project: &ProjectName,
        service: &ResourceName,
        number: model::ids::ReleaseNumber,
    ) -> Result<Release, Error> {
        self.get(&format!(
            "/v1/projects/{project}/services/{service}/releases/{number}"
        ))
        .await
    }

    pub async fn rollout(
        &self,
        project: &ProjectName,
        service: &ResourceName,
    ) -> Result<Rollout, Error> {
        self.get(&format!("/v1/projects/{project}/rollouts/{service}"))
            .await
    }

    pub async fn set_secret(
        &self,
        project: &ProjectName,
        name: &ResourceName,
        value: &wire::SecretValue,
    ) -> Result<wire::SecretView, Error> {
        let path = format!("/v1/projects/{project}/secrets/{name}/value");
        self.exchange(Method::PUT, &path, value, None).await
    }

    /// A key's value and its revision.
    pub async fn key(&self, project: &ProjectName, name: &str) -> Result<(Bytes, String), Error> {
        let path = key_path(project, name);
        let answer = self.send(request(Method::GET, &path, Bytes::new())).await?;
        let tag = answer.headers().get(header::ETAG);
        let tag = tag.and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let revision = tag.trim_matches('"').to_owned();
        Ok((self.read(answer).await?, revision))
    }

    pub async fn put_key(
        &self,
        project: &ProjectName,
        name: &str,
        value: impl Into<Bytes>,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        let request = request(Method::PUT, &key_path(project, name), value);
        self.change_key(request, unless).await
    }

    pub async fn delete_key(
        &self,
        project: &ProjectName,
        name: &str,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        let request = request(Method::DELETE, &key_path(project, name), Bytes::new());
        self.change_key(request, unless).await
    }

    async fn change_key(
        &self,
        mut request: Request<Body>,
        unless: &Unless,
    ) -> Result<wire::KeyWritten, Error> {
        request.headers_mut().extend(unless.header());
        let answer = self.send(request).await?;
        self.decode(answer).await
    }

    /// All keys whose names begin with `prefix`, page after page.
    pub async fn keys(
        &self,
        project: &ProjectName,
        prefix: &str,
    ) -> Result<Vec<wire::KeyView>, Error> {
        let mut all: Vec<wire::KeyView> = Vec::new();
        loop {
            let after = all.last().map_or("", |last| last.name.as_str());
            let path = format!(
                "/v1/projects/{project}/keys?prefix={}&after={}",
                escape(prefix),
                escape(after)
            );
            let page: wire::Keys = self.get(&path).await?;
            all.extend(page.items);
            if !page.more {
                return Ok(all);
            }
        }
    }

    pub async fn explain(
        &self,
        project: &ProjectName,
        subject: &str,
    ) -> Result<wire::Explanation, Error> {
        self.get(&format!(
            "/v1/projects/{project}/explain/{}",
            escape(subject)
        ))
        .await
    }

    pub async fn explain_node(&self, node: &NodeName) -> Result<wire::Explanation, Error> {
        self.get(&format!("/v1/nodes/{node}/explain")).await
    }

    pub async fn events(
        &self,
        project: Option<&ProjectName>,
        after: u64,
    ) -> Result<wire::List<Event>, Error> {
        self.get(&events_path(project, after, false)).await
    }

    pub async fn watch_events(
        &self,
        project: Option<&ProjectName>,
        after: u64,
    ) -> Result<BoxStream<Result<Event, stream::Error>>, Error> {
        self.watch(&events_path(project, after, true)).await
    }

    pub async fn nodes(&self) -> Result<wire::List<wire::NodeView>, Error> {
        self.get("/v1/nodes").await
    }

    /// Stops (`true`) or resumes (`false`) new placements on a node.
    pub async fn cordon(&self, node: &NodeName, cordoned: bool) -> Result<wire::NodeView, Error> {
        self.exchange(
            Method::PUT,
            &format!("/v1/nodes/{node}/cordoned"),
            &cordoned,
            None,
        )
        .await
    }

    /// Removes a node for good, or says what that would cost.
    pub async fn remove_node(
        &self,
        node: &NodeName,
        dry_run: bool,
    ) -> Result<wire::NodeRemoved, Error> {
        let path = format!("/v1/nodes/{node}?dry_run={dry_run}");
        let answer = self
            .send(request(Method::DELETE, &path, Bytes::new()))
            .await?;
        self.decode(answer).await
    }

    /// Says that the nodes that vanished at once are gone.
    pub async fn release_brake(&self) -> Result<wire::BrakeReleased, Error> {
        self.exchange(Method::POST, "/v1/brake/release", &(), None)
            .await
    }

    pub async fn audit(&self, limit: u32) -> Result<wire::List<AuditRecord>, Error> {
        self.audit_of(limit, &[]).await
    }

    /// Of a principal, action, thing or time: `principal`, `action`, `on`, `since`, `until`.
    pub async fn audit_of(
        &self,
        limit: u32,
        filter: &[(&str, String)],
    ) -> Result<wire::List<AuditRecord>, Error> {
        let filter = filter.iter();
        let filter: String = filter
            .map(|(name, value)| format!("&{name}={}", escape(value)))
            .collect();
        self.get(&format!("/v1/audit?limit={limit}{filter}")).await
    }

    /// The keys that seal secrets.
    pub async fn keyring(&self) -> Result<wire::Keyring, Error> {
        self.get("/v1/keyring").await
    }

    /// Seals all secrets by a new key. Repeated, it does so again.
    pub async fn rotate_keyring(&self) -> Result<wire::Keyring, Error> {
        self.exchange(Method::POST, "/v1/keyring/rotate", &(), None)
            .await
    }

    /// The audit log as it is chained, from a record on.
    pub async fn audit_chain(&self, from: u64) -> Result<wire::AuditChain, Error> {
        self.get(&format!("/v1/audit/chain?from={from}")).await
    }

    /// The lines of one instance: the last `tail`, and with `follow` what comes.
    pub async fn logs(
        &self,
        project: &ProjectName,
        instance: &str,
        tail: u32,
        follow: bool,
    ) -> Result<BoxStream<Result<LogLine, stream::Error>>, Error> {
        self.watch(&format!(
            "/v1/projects/{project}/instances/{instance}/logs?tail={tail}&follow={follow}"
        ))
        .await
    }

    pub async fn exec(
        &self,
        project: &ProjectName,
        instance: &str,
        frames: impl futures_util::Stream<Item = Bytes> + Send + 'static,
    ) -> Result<BoxStream<Result<stream::Frame, stream::Error>>, Error> {
        self.duplex(
            &format!("/v1/projects/{project}/instances/{instance}/exec"),
            frames,
        )
        .await
    }

    pub async fn make_join_token(
        &self,
        ask: &wire::MakeJoinToken,
    ) -> Result<wire::MadeJoinToken, Error> {
        self.exchange(Method::POST, "/v1/join-tokens", ask, None)
            .await
    }

    pub async fn begin_upload(
        &self,
        digest: &Digest,
        size: model::units::Bytes,
    ) -> Result<wire::UploadState, Error> {
        let path = format!("/v1/artifacts/{digest}");
        self.exchange(Method::PUT, &path, &wire::BeginUpload { size }, None)
            .await
    }

    pub async fn upload_chunk(
        &self,
        digest: &Digest,
        offset: u64,
        chunk: Bytes,
    ) -> Result<wire::UploadState, Error> {
        let path = format!("/v1/artifacts/{digest}?offset={offset}");
        let answer = self.send(request(Method::PATCH, &path, chunk)).await?;
        self.decode(answer).await
    }
}

fn key_path(project: &ProjectName, name: &str) -> String {
    format!("/v1/projects/{project}/keys/{}", escape(name))
}

fn events_path(project: Option<&ProjectName>, after: u64, watch: bool) -> String {
    match project {
        Some(project) => format!("/v1/projects/{project}/events?after={after}&watch={watch}"),
        None => format!("/v1/events?after={after}&watch={watch}"),
    }
}
