//! One fault each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;
use system::cloud::Instance;
use system::{proc, wait};

use super::{BACK_WITHIN, RATE, Shop, books_are_right};

/// From the loss of a zone to the start of the last replacement: 3.5 s until the node is lost, a step of the leader, the order, the start.
const STARTED_WITHIN: Duration = Duration::from_millis(4_500);
/// To the last of them serving. How long a program takes to begin is its own, on cores that the load and builds for debugging share.
const REPLACED_WITHIN: Duration = Duration::from_secs(8);
/// An engine that is killed serves again.
const RESTARTED_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn every_copy_is_killed_in_turn() {
    let mut shop = Shop::up();
    shop.unnoticed(25, |shop| {
        let services = [
            "storefront",
            "cart",
            "inventory",
            "payment",
            "provider",
            "orders",
            "checkout",
            "email",
            "shipping",
            "analytics",
        ];
        for service in services {
            for instance in shop.cloud.ready(service).unwrap() {
                let took = shop.kill(&instance);
                println!("{} is back after {took:?}", instance.name);
            }
        }
    });
}

#[test]
fn a_zone_without_engines_dies_and_later_the_server() {
    let mut shop = Shop::up();
    let all = shop.cloud.ps().unwrap();
    let home = |service: &str| {
        let one = all.iter().find(|one| one.service == service);
        one.and_then(|one| one.node.clone()).unwrap()
    };
    let homes = ["orders-db", "order-events", "analytics"].map(home);
    let victim = ["a", "b", "c"]
        .into_iter()
        .find(|zone| homes.iter().all(|home| home != zone));
    // The one whose volume may be there is a worker: it waits for its zone, and so do its events.
    let victim = victim.unwrap_or_else(|| {
        ["a", "b", "c"]
            .into_iter()
            .find(|zone| homes[..2].iter().all(|home| home != zone))
            .unwrap()
    });
    let analytics_waits = homes[2] == victim;
    shop.unnoticed(25, |shop| {
        let before = wanted(&shop.cloud.ps().unwrap());
        let killed = Timestamp::now();
        shop.cloud.kill_node(victim).unwrap();
        let replaced = || {
            let ready = outside(&shop.cloud.ps().map_err(|error| error.to_string())?, victim);
            let lacking: Vec<_> = before
                .iter()
                .filter(|(service, _)| !(analytics_waits && *service == "analytics"))
                .filter(|(service, count)| ready.get(*service).unwrap_or(&0) < count)
                .collect();
            match lacking.is_empty() {
                true => Ok(()),
                false => Err(format!("{lacking:?}; ready outside: {ready:?}")),
            }
        };
        let (_, took) = wait::until("all copies serve elsewhere", BACK_WITHIN, replaced);
        let started = shop.cloud.last_start_since(killed).unwrap();
        println!("replacements started after {started:?}, all served after {took:?}");
        assert!(
            !started.is_zero() && started < STARTED_WITHIN,
            "{started:?}"
        );
        assert!(took < REPLACED_WITHIN, "{took:?}");
        shop.cloud.say(&["start", victim]).unwrap();
        shop.all_ready();
        let server = shop.cloud.processes_with(&["server", "--api"]);
        proc::signal(server[0], Signal::KILL).unwrap();
        shop.all_ready();
    });
}

fn wanted(all: &[Instance]) -> BTreeMap<String, usize> {
    let mut wanted = BTreeMap::new();
    for one in all.iter().filter(|one| one.purpose == "serve") {
        *wanted.entry(one.service.clone()).or_default() += 1;
    }
    wanted
}

fn outside(all: &[Instance], victim: &str) -> BTreeMap<String, usize> {
    let ready = all
        .iter()
        .filter(|one| one.ready && one.state == "running" && one.node.as_deref() != Some(victim));
    let mut outside = BTreeMap::new();
    for one in ready {
        *outside.entry(one.service.clone()).or_default() += 1;
    }
    outside
}

#[test]
fn the_engines_are_killed() {
    let mut shop = Shop::up();
    shop.honest(RATE, 25, |shop| {
        for engine in ["order-events", "orders-db", "order-events", "orders-db"] {
            let instance = shop.cloud.ready(engine).unwrap().remove(0);
            let took = shop.kill(&instance);
            println!("{engine} serves again after {took:?}");
            assert!(took <= RESTARTED_WITHIN, "{engine} took {took:?}");
        }
    });
    // PostgreSQL itself, below its engine.
    shop.honest(RATE, 10, |shop| {
        let instance = shop.cloud.ready("orders-db").unwrap().remove(0);
        let postgres = proc::children(instance.pid.unwrap());
        proc::signal(postgres[0], Signal::KILL).unwrap();
        shop.cloud.wait_ready("orders-db", 1, BACK_WITHIN);
    });
}

#[test]
fn deploys_good_and_bad_scale_and_rollback() {
    let mut shop = Shop::up();
    shop.unnoticed(40, |shop| {
        shop.cloud.say(&["scale", "checkout", "4"]).unwrap();
        shop.cloud.wait_ready("checkout", 4, BACK_WITHIN);
        shop.cloud.say(&["scale", "checkout", "2"]).unwrap();
        shop.cloud.wait_ready("checkout", 2, BACK_WITHIN);

        shop.edit(
            "    replicas: 3\n",
            "    replicas: 3\n    env: { COLOUR: blue }\n",
        );
        let said = shop.cloud.say(&["deploy", "checkout", "--wait"]).unwrap();
        println!("{said}");
        let versions = |shop: &Shop| -> Vec<u64> {
            let ready = shop.cloud.ready("checkout").unwrap();
            ready.iter().map(|one| one.version).collect()
        };
        assert!(versions(shop).iter().all(|version| *version == 2));

        shop.edit("[./bin/shop, checkout]", "[./bin/shop, chekout]");
        let output = shop.cloud.run(&["deploy", "checkout", "--wait"]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("chekout"), "the log is not shown: {said}");
        assert!(said.contains("goes on serving"), "{said}");
        assert!(versions(shop).iter().all(|version| *version == 2));

        shop.cloud
            .say(&["rollback", "checkout", "--to", "1"])
            .unwrap();
        shop.cloud
            .say(&["rollout", "status", "checkout", "--wait"])
            .unwrap();
    });
}

#[test]
fn a_provider_that_is_slow_fails_and_repeats() {
    let mut shop = Shop::up();
    shop.provider_behaves(
        r#"{"slow_ms": 10000, "slow_rate": 0.05, "fail_rate": 0.3, "repeat_rate": 0.5}"#,
    );
    shop.honest(50, 20, |_| {});
    shop.provider_behaves("{}");
    shop.unnoticed(5, |_| {});
}

#[test]
fn everything_is_killed_and_comes_up_again() {
    let mut shop = Shop::up();
    let load = shop.load(50, 10);
    let begin = Instant::now();
    wait::until("some orders", BACK_WITHIN, || {
        (begin.elapsed() > Duration::from_secs(4))
            .then_some(())
            .ok_or(String::new())
    });
    shop.cloud.kill_everything().unwrap();
    let took = shop.cloud.up().unwrap();
    println!("`up` again after {took:?}");
    shop.all_ready();
    // Its gateway was gone for a while: what it could not reach has failed. The books must be right all the same.
    let (audit, said) = load.finish();
    books_are_right(&audit, &said);
    shop.cloud.down().unwrap();
    let took = shop.cloud.up().unwrap();
    println!("a second start serves after {took:?}");
    shop.all_ready();
    shop.unnoticed(5, |_| {});
}

#[test]
fn two_environments_beside_each_other() {
    let shop = Shop::up();
    shop.cloud
        .say(&["apply", "--env", "staging", "--wait", "--timeout", "60s"])
        .unwrap();
    let hosts = ["shop.localhost", "staging.shop.localhost"];
    let orders = hosts.map(|host| shop.buy(host));
    for (index, host) in hosts.into_iter().enumerate() {
        let own = shop.get(host, &format!("/api/orders/{}", orders[index]));
        assert!(own.contains(&orders[index]), "{host}: {own}");
        let others = shop.get(host, &format!("/api/orders/{}", orders[1 - index]));
        assert!(
            !others.contains("total_cents"),
            "{host} shows the other's order: {others}"
        );
    }
    let secret = |project: &str| {
        let words = [
            "exec",
            "-p",
            project,
            "payment",
            "--",
            "printenv",
            "PAYMENT_KEY",
        ];
        shop.cloud.say(&words).unwrap()
    };
    let (one, other) = (secret("shop"), secret("shop-staging"));
    assert!(!one.trim().is_empty() && one != other, "one secret for two");
}
