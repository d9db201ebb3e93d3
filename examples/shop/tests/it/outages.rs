//! The database is killed and comes back; the provider fails, repeats and is slow; workers get everything at least once.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use shop::by_hand::courier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::world::{World, cart, world};

type Answers = Vec<(String, Option<(u16, Value)>)>;

/// Buyers one after the other, several such rows at once; answers by key.
fn buyers(world: &World, rows: usize, each: usize) -> JoinSet<Answers> {
    let mut tasks = JoinSet::new();
    for row in 0..rows {
        let (http, checkout) = (world.http.clone(), world.shop.address("checkout"));
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for number in 0..each {
                let key = format!("row-{row}-{number}");
                let answer = http
                    .check_out(&checkout, &key, &cart("wool-blanket", 1))
                    .await;
                answers.push((key, answer));
            }
            answers
        });
    }
    tasks
}

#[tokio::test]
async fn a_database_that_is_killed_loses_no_order() {
    let Some(mut world) = world().await else {
        return;
    };
    tokio::spawn(courier::carry(
        world.shop.postgres.url(),
        world.shop.workers(),
    ));
    let buying = buyers(&world, 4, 60);
    sleep(Duration::from_millis(300)).await;
    world.shop.postgres.kill().expect("it was running");
    world.shop.postgres.start_again().expect("it recovers");
    let answers: Vec<_> = buying.join_all().await.into_iter().flatten().collect();
    let books = world.audit().await;
    let mut sold = 0;
    for (key, answer) in answers {
        let (status, body) = answer.expect("an answer");
        match status {
            201 => assert_eq!(books.orders[&key]["order_id"], body["order_id"]),
            503 => assert!(body["outcome"].is_string(), "{body}"),
            _ => panic!("{key}: {status} {body}"),
        }
        sold += usize::from(status == 201);
    }
    assert!(sold > 0, "there was nothing to lose");
    let orders: BTreeSet<String> = books.orders.values().map(order_id).collect();
    workers_have_seen(&world, &orders).await;
}

fn order_id(line: &Value) -> String {
    line["order_id"].as_str().unwrap_or_default().to_owned()
}

async fn workers_have_seen(world: &World, orders: &BTreeSet<String>) {
    let until = Instant::now() + Duration::from_secs(20);
    for worker in ["email", "shipping", "analytics"] {
        loop {
            let lines = world.lines(worker, &format!("effects/{worker}")).await;
            let placed = lines.iter().filter(|line| line["type"] == "order.placed");
            let seen: Vec<String> = placed.map(order_id).collect();
            if seen.iter().cloned().collect::<BTreeSet<_>>() == *orders {
                assert_eq!(seen.len(), orders.len(), "{worker}: once for each");
                break;
            }
            assert!(
                Instant::now() < until,
                "{worker}: {} of {}",
                seen.len(),
                orders.len()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn a_provider_that_fails_and_repeats_charges_nobody_twice() {
    let Some(world) = world().await else { return };
    let trouble = json!({"fail_rate": 0.4, "repeat_rate": 0.5, "slow_rate": 0.3, "slow_ms": 100});
    let url = format!("{}/api/provider/behaviour", world.shop.address("provider"));
    let set = world.http.send("PUT", &url, "", &trouble).await;
    assert_eq!(set.map(|(status, _)| status), Some(200));
    let answers: Vec<_> = buyers(&world, 4, 20)
        .join_all()
        .await
        .into_iter()
        .flatten()
        .collect();
    let mild = world.http.send("PUT", &url, "", &json!({})).await;
    assert_eq!(mild.map(|(status, _)| status), Some(200));
    let books = world.audit().await;
    for (key, answer) in answers {
        let (status, body) = answer.expect("an answer");
        match (status, body["outcome"].as_str()) {
            (201, _) => assert_eq!(books.state(&key), "completed"),
            (503, Some("not charged")) => assert_eq!(books.state(&key), "compensated"),
            (503, Some("unknown")) => {}
            _ => panic!("{key}: {status} {body}"),
        }
    }
}
