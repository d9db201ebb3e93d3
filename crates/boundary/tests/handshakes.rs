//! Handshakes over memory, with a clock that the test sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use boundary::Clock;
use boundary::authority::{self, Authority, Fingerprint, Key, Terms};
use jiff::{SignedDuration, Timestamp};
use model::boundary::{Holder, SpiffeId};
use model::traffic::Identity;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use tls::{
    ClientAuth, Expect, client_config, client_config_without_identity, join_config, server_config,
};

/// How long a certificate is good.
const LIFE_HOURS: i64 = 30 * 24;

/// A cluster with its authority and a clock of its own.
struct World {
    cluster: String,
    authority: Authority,
    hours: Arc<AtomicI64>,
}

impl World {
    fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            authority: Authority::generate(cluster, at_hour(0)).unwrap(),
            hours: Arc::new(AtomicI64::new(0)),
        }
    }

    fn set_hour(&self, hour: i64) {
        self.hours.store(hour, Ordering::Relaxed);
    }

    fn clock(&self) -> Clock {
        let hours = Arc::clone(&self.hours);
        Arc::new(move || at_hour(hours.load(Ordering::Relaxed)))
    }

    fn identity(&self, holder: Holder) -> Identity {
        let id = SpiffeId {
            cluster: self.cluster.clone(),
            holder,
        };
        let key = Key::generate().unwrap();
        let request = key.request().unwrap();
        let now = (self.clock())();
        let chain = self
            .authority
            .issue(&request, &id, &Terms::default(), now)
            .unwrap();
        key.into_identity(chain)
    }

    fn server(&self, identity: &Identity, client_auth: ClientAuth) -> ServerConfig {
        let authority = self.authority.certificate();
        server_config(
            identity,
            authority,
            client_auth,
            Expect::Anyone,
            self.clock(),
        )
        .unwrap()
    }

    fn client(&self, identity: &Identity, expect: Expect) -> ClientConfig {
        client_config(identity, self.authority.certificate(), expect, self.clock()).unwrap()
    }
}

fn at_hour(hour: i64) -> Timestamp {
    "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hour)
}

fn node(name: &str) -> Holder {
    Holder::Node(name.parse().unwrap())
}

fn service(id: &str) -> Holder {
    Holder::Service(id.parse().unwrap())
}

/// Whom the server and the client have seen.
type Seen = (Option<SpiffeId>, SpiffeId);

/// Carries bytes to and fro until both sides are done or one refuses.
fn shake_hands(server: ServerConfig, client: ClientConfig) -> Result<Seen, rustls::Error> {
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), tls::server_name()).unwrap();
    for _ in 0..8 {
        carry(&mut client, &mut server)?;
        carry(&mut server, &mut client)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    let shown = server
        .peer_certificates()
        .map(|shown| tls::peer_id(shown).map(|peer| peer.name));
    let shown_by_server = tls::peer_id(client.peer_certificates().unwrap())
        .unwrap()
        .name;
    Ok((shown.transpose().unwrap(), shown_by_server))
}

fn carry<A, B>(
    from: &mut rustls::ConnectionCommon<A>,
    to: &mut rustls::ConnectionCommon<B>,
) -> Result<(), rustls::Error>
where
    A: rustls::SideData,
    B: rustls::SideData,
{
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn refusal(server: ServerConfig, client: ClientConfig) -> String {
    tls::explain(&shake_hands(server, client).unwrap_err())
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let world = World::new("c1");
    let server = world.server(&world.identity(Holder::Server), ClientAuth::Required);
    let client = world.client(&world.identity(node("a")), Expect::Holder(Holder::Server));
    let (caller, callee) = shake_hands(server, client).unwrap();
    assert_eq!(caller.unwrap().to_string(), "spiffe://c1/node/a");
    assert_eq!(callee.to_string(), "spiffe://c1/server");
}

#[test]
fn certificates_are_good_from_two_hours_before_until_a_month_after() {
    let world = World::new("c1");
    let server = world.identity(Holder::Server);
    let client = world.identity(node("a"));
    for (hour, expected) in [
        (-3, Some("begins at")),
        (-1, None),
        (0, None),
        (1, None),
        (LIFE_HOURS - 1, None),
        (LIFE_HOURS + 1, Some("has ended at")),
    ] {
        world.set_hour(hour);
        let verdict = shake_hands(
            world.server(&server, ClientAuth::Required),
            world.client(&client, Expect::Anyone),
        );
        match (verdict, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => {
                let shown = format!("{error:?}");
                assert!(shown.contains(why), "hour {hour}: {shown}");
            }
            (verdict, _) => panic!("hour {hour}: {verdict:?}"),
        }
    }
}

#[test]
fn the_server_refuses_an_expired_caller_by_its_own_clock() {
    let world = World::new("c1");
    let old = world.identity(node("a"));
    world.set_hour(LIFE_HOURS + 1);
    let server = world.server(&world.identity(Holder::Server), ClientAuth::Required);
    let client = world.client(&old, Expect::Anyone);
    assert!(refusal(server, client).contains("expired"));
}

#[test]
fn a_renewed_certificate_passes_where_the_old_one_ends() {
    let world = World::new("c1");
    let mut server = world.identity(Holder::Server);
    let mut client = world.identity(node("a"));
    // Two lives, looked at every six hours: an agent looks more often.
    for hour in (0..2 * LIFE_HOURS).step_by(6) {
        world.set_hour(hour);
        let now = at_hour(hour);
        if authority::needs_rotation(&server.certificate, now).unwrap() {
            server = world.identity(Holder::Server);
        }
        if authority::needs_rotation(&client.certificate, now).unwrap() {
            client = world.identity(node("a"));
        }
        shake_hands(
            world.server(&server, ClientAuth::Required),
            world.client(&client, Expect::Anyone),
        )
        .unwrap_or_else(|error| panic!("hour {hour}: {error}"));
    }
}

#[test]
fn another_authority_is_refused_on_either_side() {
    let (ours, theirs) = (World::new("c1"), World::new("c2"));
    let server = ours.server(&ours.identity(Holder::Server), ClientAuth::Required);
    let foreign = theirs.identity(node("a"));
    // Their certificate, believing our authority: only our server can refuse.
    let client = ours.client(&foreign, Expect::Anyone);
    assert!(refusal(server, client).contains("UnknownIssuer"));

    let server = theirs.server(&theirs.identity(Holder::Server), ClientAuth::Optional);
    let client = ours.client(&ours.identity(node("a")), Expect::Anyone);
    assert!(refusal(server, client).contains("UnknownIssuer"));
}

#[test]
fn an_authority_of_the_same_name_is_still_another() {
    let (ours, theirs) = (World::new("c1"), World::new("c1"));
    let server = ours.server(&ours.identity(Holder::Server), ClientAuth::Required);
    let client = ours.client(&theirs.identity(node("a")), Expect::Anyone);
    assert!(shake_hands(server, client).is_err());
}

#[test]
fn who_is_not_expected_is_refused() {
    let world = World::new("c1");
    let payment = || world.identity(service("shop/payment"));
    let cart = || world.identity(service("shop/cart"));
    let only_services = Expect::Matching(
        "a service",
        Arc::new(|holder| matches!(holder, Holder::Service(_))),
    );
    for (callee, expect, accepted) in [
        (payment(), Expect::Holder(service("shop/payment")), true),
        (cart(), Expect::Holder(service("shop/payment")), false),
        (world.identity(Holder::Server), only_services.clone(), false),
        (payment(), only_services, true),
    ] {
        let shown = format!("{expect:?}");
        let server = world.server(&callee, ClientAuth::Required);
        let client = world.client(&cart(), expect);
        assert_eq!(shake_hands(server, client).is_ok(), accepted, "{shown}");
    }
}

#[test]
fn a_server_can_say_whom_it_expects() {
    let world = World::new("c1");
    let server = |expect| {
        let identity = world.identity(Holder::Server);
        let authority = world.authority.certificate();
        server_config(
            &identity,
            authority,
            ClientAuth::Required,
            expect,
            world.clock(),
        )
        .unwrap()
    };
    let client = || world.client(&world.identity(node("a")), Expect::Anyone);
    assert!(shake_hands(server(Expect::Holder(node("a"))), client()).is_ok());
    let refused = refusal(server(Expect::Holder(node("b"))), client());
    assert!(
        refused.contains("the peer is spiffe://c1/node/a, expected node b"),
        "{refused}"
    );
}

#[test]
fn a_certificate_may_be_missing_only_where_it_is_optional() {
    let world = World::new("c1");
    let client = || {
        let authority = world.authority.certificate();
        client_config_without_identity(authority, Expect::Holder(Holder::Server), world.clock())
            .unwrap()
    };
    let identity = world.identity(Holder::Server);
    let (caller, _) = shake_hands(world.server(&identity, ClientAuth::Optional), client()).unwrap();
    assert_eq!(caller, None);
    assert!(shake_hands(world.server(&identity, ClientAuth::Required), client()).is_err());
}

#[test]
fn no_session_is_resumed_past_its_certificate() {
    let world = World::new("c1");
    let server = Arc::new(world.server(&world.identity(Holder::Server), ClientAuth::Required));
    let mut client = world.client(&world.identity(node("a")), Expect::Anyone);
    // A caller that would like to.
    client.resumption = Resumption::default();
    let client = Arc::new(client);
    let connect = || {
        let mut server = ServerConnection::new(Arc::clone(&server)).unwrap();
        let mut client = ClientConnection::new(Arc::clone(&client), tls::server_name()).unwrap();
        for _ in 0..8 {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok::<_, rustls::Error>(client.handshake_kind())
    };
    assert!(connect().is_ok());
    assert_eq!(connect(), Ok(Some(HandshakeKind::Full)));
    world.set_hour(LIFE_HOURS + 1);
    assert!(connect().is_err());
}

#[test]
fn who_joins_believes_only_the_pinned_authority_and_a_server() {
    let (world, other) = (World::new("c1"), World::new("c1"));
    let join = |pin: Fingerprint| join_config(pin, world.clock()).unwrap();
    let pin = world.authority.fingerprint();
    let server = |holder| world.server(&world.identity(holder), ClientAuth::Optional);

    let (_, callee) = shake_hands(server(Holder::Server), join(pin)).unwrap();
    assert_eq!(callee.holder, Holder::Server);

    let refused = refusal(server(Holder::Server), join(other.authority.fingerprint()));
    assert!(refused.contains("join token"), "{refused}");

    // A node of the cluster that plays the server, with the authority's certificate appended.
    let mut posing = world.identity(node("a"));
    posing.certificate.push_str(world.authority.certificate());
    let refused = refusal(world.server(&posing, ClientAuth::Optional), join(pin));
    assert!(refused.contains("expected the server"), "{refused}");

    // A stranger who appends the authority's certificate, which is public, to its own.
    let mut stranger = other.identity(Holder::Server);
    stranger.certificate = stranger
        .certificate
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .unwrap()
        .to_owned();
    stranger.certificate.push_str(world.authority.certificate());
    let refused = refusal(world.server(&stranger, ClientAuth::Optional), join(pin));
    assert!(!refused.is_empty());

    world.set_hour(LIFE_HOURS + 1);
    let old = World::new("c1");
    let identity = old.identity(Holder::Server);
    let pinned = join_config(old.authority.fingerprint(), world.clock()).unwrap();
    assert!(shake_hands(old.server(&identity, ClientAuth::Optional), pinned).is_err());
}
