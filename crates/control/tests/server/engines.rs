//! Databases and topics: asked of the server, answered by the engine beside the instance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::client::{Client, Error, Range};
use api::problem::Problem;
use api::wire::EngineKind;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use model::compute::{InstanceState, Need, OnPartition, Service, Work};
use model::control::NodeRole;
use model::ids::ResourceName;
use model::state::{
    Access, ConsumerStatus, ENGINE_VOLUME, Engine, EngineStatus, Postgres, Retention, Topic, Volume,
};
use model::traffic::Protocol;
use model::units::{Bytes as Size, Span};
use serde_json::{Value, json};

use crate::cloud::*;
use crate::tunnel::{Body, open_tunnel_with};

fn engine(engine: Engine) -> Service {
    let mut spec = service(1);
    spec.work = Work::Engine { engine };
    spec.on_partition = OnPartition::Stop;
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    let size = Size::mebibytes(64);
    spec.volumes = BTreeMap::from([(name(ENGINE_VOLUME), Volume { size })]);
    spec
}

fn topic() -> Service {
    engine(Engine::Topic(Topic {
        attempts: 3,
        retention: Retention {
            age: Span::seconds(60),
            size: Size::mebibytes(1),
        },
    }))
}

fn database() -> Service {
    let mut spec = engine(Engine::Postgres(Postgres {
        version: 15,
        outbox: None,
        extensions: Default::default(),
    }));
    spec.protocol = Protocol::Tcp;
    spec
}

fn status(dead: u64) -> EngineStatus {
    let consumer = ConsumerStatus {
        dead,
        ..ConsumerStatus::default()
    };
    EngineStatus::Topic {
        messages: 7,
        size: Size(700),
        consumers: BTreeMap::from([(name("email"), consumer)]),
    }
}

/// An engine whose answers show what it was asked; that of `stuck` never answers.
async fn on_node(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let Some((instance, asked)) = path.split_once("/engine/") else {
        return Ok(answer(StatusCode::NOT_FOUND, Bytes::new()));
    };
    if instance.ends_with("/stuck-1") {
        std::future::pending::<()>().await;
    }
    Ok(match asked {
        "status" => answer(StatusCode::OK, serde_json::to_vec(&status(2)).unwrap()),
        "dead" => answer(StatusCode::CONFLICT, "no such consumer"),
        "huge" => answer(StatusCode::OK, vec![b' '; 9 << 20]),
        _ => echo(request).await?,
    })
}

async fn echo(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let headers: BTreeMap<_, _> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let target = format!("{} {}", request.method(), request.uri());
    let length = request.into_body().collect().await?.to_bytes().len();
    let said = json!({ "target": target, "headers": headers, "length": length });
    Ok(answer(StatusCode::OK, said.to_string()))
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    response
}

/// A server with a topic and a node that runs it.
async fn with_topic(directory: &std::path::Path) -> (Cloud, FakeNode) {
    let cloud = Cloud::start(directory).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("events", topic())])).await;
    cloud.ready("events", 1).await;
    (cloud, node)
}

async fn open(cloud: &Cloud, node: &FakeNode) {
    open_tunnel_with(node, on_node).await;
    until("the tunnel", || async {
        let asked = cloud
            .client
            .engine_status(&project(), &name("events"))
            .await;
        asked.ok()
    })
    .await;
}

fn problem<T: std::fmt::Debug>(answer: Result<T, Error>) -> Problem {
    match answer {
        Err(Error::Refused(problem)) => *problem,
        other => panic!("no refusal: {other:?}"),
    }
}

async fn ask(client: &Client, engine: &str, path: &str) -> Result<Value, Error> {
    let path = format!("/v1/projects/shop/engines/{engine}/{path}");
    client.get(&path).await
}

async fn tell(client: &Client, path: &str, body: Value) -> Result<Value, Error> {
    let path = format!("/v1/projects/shop/engines/events/{path}");
    client.exchange(Method::POST, &path, &body, None).await
}

#[tokio::test]
async fn what_is_not_there_or_does_not_run_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, _node) = with_topic(directory.path()).await;

    let unknown = problem(ask(&cloud.client, "evnts", "status").await);
    assert_eq!((unknown.status, unknown.code.as_str()), (404, "not-found"));
    assert_eq!(unknown.remedy.as_deref(), Some("did you mean `events`?"));
    // A service is no engine.
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let service = problem(ask(&cloud.client, "web", "status").await);
    assert_eq!(service.status, 404);

    let silent = problem(ask(&cloud.client, "events", "status").await);
    let told = (silent.status, silent.code.as_str());
    assert_eq!(told, (503, "node-unreachable"));
    for strange in ["../secrets", "a//b", "a%2Fb%20c", "%2e%2e"] {
        let refused = problem(ask(&cloud.client, "events", strange).await);
        assert_eq!(refused.code, "invalid", "{strange}: {refused:?}");
    }
}

#[tokio::test]
async fn an_engine_that_has_failed_is_said_to_have_failed() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let token = cloud.join_token(Some("a")).await;
    let joining = FakeNode::let_in(&token, cloud.file.nodes, "a", NodeRole::Worker);
    let mut node = joining.await.unwrap();
    node.start(Arc::new(|_| (InstanceState::Failed, false)));
    cloud.apply(&apply_of(&[("events", topic())])).await;
    let failed = |shown: &[api::wire::InstanceView]| {
        shown.iter().any(|one| one.state == InstanceState::Failed)
    };
    cloud.ps_until("a failed instance", failed).await;

    let refused = problem(ask(&cloud.client, "events", "status").await);
    let told = (refused.status, refused.code.as_str());
    assert_eq!(told, (503, "not-running"));
    assert!(refused.title.contains("it is failed"), "{refused:?}");
    let status = cloud.client.status(&project()).await.unwrap();
    let silence = status.engines[0].silence.as_ref().unwrap();
    assert_eq!(silence.code, "not-running");
}

#[tokio::test]
async fn a_request_reaches_the_engine_with_what_is_its_business_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, node) = with_topic(directory.path()).await;
    open(&cloud, &node).await;

    let (shop, events) = (project(), name("events"));
    let range = Range { after: 3, limit: 5 };
    // It is no page: what was asked is in the answer.
    let page = cloud.client.messages(&shop, &events, &range).await;
    assert!(matches!(page, Err(Error::Malformed { .. })));
    let asked = ask(&cloud.client, "events", "messages?after=3&limit=5").await;
    let target = "http://a/v1/instances/shop/events-1/engine/messages?after=3&limit=5";
    assert_eq!(asked.unwrap()["target"], format!("GET {target}"));

    let attributes = [("ce-type", "order.placed"), ("content-type", "text/plain")];
    let attributes: HeaderMap = attributes
        .map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        })
        .into_iter()
        .collect();
    let publish = async |length| {
        let path = "/v1/projects/shop/engines/events/messages";
        let mut request = api::client::request(Method::POST, path, vec![b'x'; length]);
        request.headers_mut().extend(attributes.clone());
        let answer = cloud.client.send(request).await?.into_body();
        let body = answer.collect().await.unwrap().to_bytes();
        Ok::<_, Error>(serde_json::from_slice::<Value>(&body).unwrap())
    };
    let told = publish(1 << 20).await.unwrap();
    assert_eq!(told["length"], 1 << 20);
    assert_eq!(told["headers"]["ce-type"], "order.placed");
    assert_eq!(told["headers"]["content-type"], "text/plain");
    assert_eq!(told["headers"].get("authorization"), None, "{told}");
    assert_eq!(code(publish((1 << 20) + 1).await), "too-large");
    assert_eq!(
        code(ask(&cloud.client, "events", "huge").await),
        "no-answer"
    );

    let refused = problem(ask(&cloud.client, "events", "dead").await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "engine"));
    assert!(refused.title.contains("no such consumer"), "{refused:?}");
}

#[tokio::test]
async fn what_is_told_is_audited_without_its_body_and_only_administrators_tell() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, node) = with_topic(directory.path()).await;
    open(&cloud, &node).await;
    let body = json!({"consumer": "email"});
    tell(&cloud.client, "redrive", body).await.unwrap();
    ask(&cloud.client, "events", "status").await.unwrap();

    let audit = cloud.client.audit(20).await.unwrap().items;
    let of_engines: Vec<_> = audit
        .iter()
        .filter(|one| one.on == "shop/events" || one.action == "askEngine")
        .collect();
    assert_eq!(of_engines.len(), 1, "looking is no change: {audit:#?}");
    assert_eq!(of_engines[0].action, "tell");
    assert_eq!(of_engines[0].detail, ["POST /redrive"]);

    let nobody = Client::new(cloud.client.transport().clone(), None);
    for client in [&nobody, &*node.client] {
        let told = problem(tell(client, "redrive", json!({})).await);
        assert!(matches!(told.status, 401 | 403), "{told:?}");
        let asked = problem(ask(client, "events", "status").await);
        assert!(matches!(asked.status, 401 | 403), "{asked:?}");
    }
}

#[tokio::test]
async fn status_has_what_engines_say_and_waits_for_no_stuck_one() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, node) = with_topic(directory.path()).await;
    let mut reader = service(1);
    let need = Need {
        access: Access::Read,
        ..Need::default()
    };
    reader.needs.insert(name("stuck"), need);
    cloud
        .apply(&apply_of(&[("stuck", database()), ("reports", reader)]))
        .await;
    cloud.ready("stuck", 1).await;
    open(&cloud, &node).await;

    let begin = Instant::now();
    let found = cloud.client.status(&project()).await.unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let of = |name: &str| {
        let name: ResourceName = name.parse().unwrap();
        found.engines.iter().find(|view| view.name == name).unwrap()
    };
    let (events, stuck) = (of("events"), of("stuck"));
    assert_eq!(events.kind, EngineKind::Topic);
    assert_eq!(events.status, Some(status(2)));
    assert_eq!((stuck.kind, &stuck.status), (EngineKind::Database, &None));
    assert_eq!(stuck.silence.as_ref().unwrap().code, "no-answer");
    let access = BTreeMap::from([(name("reports"), Access::Read)]);
    assert_eq!(stuck.access, access);
    let attention = found.attention.iter().map(|reason| reason.code.as_str());
    let attention: Vec<_> = attention.collect();
    assert!(attention.contains(&"dead-letters"), "{attention:?}");

    let first = async |subject: &str| {
        let explanation = cloud.client.explain(&project(), subject).await.unwrap();
        explanation.because[0].reason.code.clone()
    };
    assert_eq!(first("stuck").await, "no-answer");
    assert_ne!(first("events").await, "no-answer");

    let quick = cloud.client.status_of_services(&project()).await.unwrap();
    assert!(quick.engines.is_empty());
}

/// The connections that a release declares count for as long as a copy of it runs; those of the next count from its first.
#[tokio::test]
async fn connections_shrink_when_the_copies_that_hold_them_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let web = |connections: Option<u32>, version: &str| {
        let mut spec = with_env(service(1), "VERSION", version);
        let need = Need {
            connections,
            ..Need::default()
        };
        spec.needs.insert(name("db"), need);
        spec
    };
    let told = || {
        let instances = node.desired().map(|told| told.instances);
        let of_db = instances.unwrap_or_default().into_iter();
        let settings = of_db.filter_map(|told| told.settings).next();
        let settings = settings.unwrap_or_default();
        let most = settings.connections.get(&name("web")).copied();
        (most, settings.sharing.contains(&name("web")))
    };
    let until_told = async |what: &str, expect: (Option<u32>, bool)| {
        until(what, || async { (told() == expect).then_some(()) }).await;
    };
    let apply = async |spec: Service| {
        cloud
            .apply(&apply_of(&[("db", database()), ("web", spec)]))
            .await;
    };
    apply(web(Some(20), "1")).await;
    cloud.ready("web", 1).await;
    until_told("what is declared", (Some(20), false)).await;
    // Fewer, and more, and none: none of these is ever ready.
    for (next, while_both_run) in [
        (Some(5), (Some(20), false)),
        (Some(30), (Some(30), false)),
        (None, (Some(20), true)),
    ] {
        apply(with_env(web(next, "2"), "BROKEN", "yes")).await;
        until("both run", || async {
            let instances = node.desired()?.instances;
            let mut both = instances.iter().filter(|told| told.service == name("web"));
            both.any(|told| told.spec.env.contains_key("BROKEN"))
                .then_some(())
        })
        .await;
        assert_eq!(told(), while_both_run, "{next:?}");
        apply(web(Some(20), "1")).await;
        until_told("what it was", (Some(20), false)).await;
    }
    apply(web(Some(5), "3")).await;
    until_told("the old copies are gone", (Some(5), false)).await;
    apply(web(None, "4")).await;
    until_told("an equal share", (None, false)).await;
}

/// A pool that is open was made for the share of before: until it is replaced, who came since is named to the database.
#[tokio::test]
async fn a_service_that_comes_takes_no_connections_of_copies_that_run() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let told = || {
        let instances = node.desired().map(|told| told.instances);
        let of_db = instances.unwrap_or_default().into_iter();
        let settings = of_db.filter_map(|told| told.settings).next();
        let settings = settings.unwrap_or_default();
        let newcomers = settings.newcomers.into_iter();
        let newcomers = newcomers.map(|(name, after)| {
            let after: Vec<_> = after.iter().map(ToString::to_string).collect();
            (name.to_string(), after.join(" "))
        });
        (settings.roles.len(), newcomers.collect::<BTreeMap<_, _>>())
    };
    let until_told = async |what: &str, roles: usize, expect: &[(&str, &str)]| {
        let expect = expect
            .iter()
            .map(|(one, after)| ((*one).to_owned(), (*after).to_owned()));
        let expect: BTreeMap<_, _> = expect.collect();
        until(what, || async {
            (told() == (roles, expect.clone())).then_some(())
        })
        .await;
    };
    let user = |version: &str| needing(with_env(service(1), "VERSION", version), "db");
    // Those of one apply came together.
    let first = [
        ("db", database()),
        ("cart", user("1")),
        ("orders", user("1")),
    ];
    cloud.apply(&apply_of(&first)).await;
    cloud.ready("orders", 1).await;
    cloud.ready("cart", 1).await;
    until_told("two", 2, &[]).await;
    cloud.apply(&apply_of(&[("report", user("1"))])).await;
    until_told("a third", 3, &[("cart", "report"), ("orders", "report")]).await;
    // What restarts nothing replaces no pool.
    let mut wider = user("1");
    wider.replicas = 2;
    cloud.apply(&apply_of(&[("cart", wider.clone())])).await;
    cloud.ready("cart", 2).await;
    until_told("still", 3, &[("cart", "report"), ("orders", "report")]).await;
    wider.env.insert("VERSION".to_owned(), "2".to_owned());
    cloud.apply(&apply_of(&[("cart", wider)])).await;
    until_told("one is replaced", 3, &[("orders", "report")]).await;
    let restarted = cloud
        .client
        .restart(&project(), &name("orders"), &key())
        .await;
    restarted.unwrap();
    until_told("all are", 3, &[]).await;
    // Who starts again under its old release has no claim from before those who run.
    cloud.apply(&apply_of(&[("late", user("1"))])).await;
    let held = [("cart", "late"), ("orders", "late"), ("report", "late")];
    until_told("a fourth", 4, &held).await;
    let scale = async |replicas| {
        let (shop, cart) = (project(), name("cart"));
        cloud.client.scale(&shop, &cart, replicas).await.unwrap();
    };
    scale(0).await;
    until_told("no copy, no claim", 4, &held[1..]).await;
    scale(2).await;
    cloud.ready("cart", 2).await;
    until_told("as one that came last", 4, &held[1..]).await;
}
