//! Many at once: for the last few of a thing, and with one and the same key.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::{World, cart, world};

async fn all_at_once(world: &World, orders: Vec<(String, Value)>) -> Vec<(u16, Value)> {
    let mut tasks = JoinSet::new();
    for (key, cart) in orders {
        let (http, checkout) = (world.http.clone(), world.shop.address("checkout"));
        tasks.spawn(async move { http.check_out(&checkout, &key, &cart).await });
    }
    let answers = tasks.join_all().await;
    answers.into_iter().map(|a| a.expect("an answer")).collect()
}

#[tokio::test]
async fn what_there_is_is_sold_once() {
    let Some(world) = world().await else { return };
    // Twelve of one and forty of the other; some want both, and name them in either order.
    let carts = [
        json!([{"sku": "bottle-ship", "quantity": 1}]),
        json!([{"sku": "bottle-ship", "quantity": 1}, {"sku": "lighthouse-lamp", "quantity": 3}]),
        json!([{"sku": "lighthouse-lamp", "quantity": 3}, {"sku": "bottle-ship", "quantity": 1}]),
        json!([{"sku": "lighthouse-lamp", "quantity": 3}]),
    ];
    let order = |number: usize| {
        let items = &carts[number % carts.len()];
        let cart = json!({"items": items, "card": crate::world::CARD});
        (format!("buyer-{number}"), cart)
    };
    let answers = all_at_once(&world, (0..60).map(order).collect()).await;
    for (status, body) in &answers {
        assert!([201, 409].contains(status), "{status} {body}");
        if *status == 409 {
            assert!(
                body["skus"].as_array().is_some_and(|skus| !skus.is_empty()),
                "{body}"
            );
        }
    }
    let books = world.audit().await;
    let left = |sku: &str| {
        let stock = books.stock.iter().find(|stock| stock["sku"] == sku);
        stock.map_or(Value::Null, |stock| stock["available"].clone())
    };
    // More was wanted of both than there is, and the carts are small: nothing that could be sold was kept back.
    assert!(left("bottle-ship") == 0 || left("lighthouse-lamp").as_i64() < Some(3));
}

#[tokio::test]
async fn one_key_is_one_order() {
    let Some(world) = world().await else { return };
    let same = |_| ("one".to_owned(), cart("enamel-mug", 2));
    let answers = all_at_once(&world, (0..12).map(same).collect()).await;
    let mut orders = BTreeSet::new();
    for (status, body) in &answers {
        match status {
            201 => drop(orders.insert(body["order_id"].to_string())),
            _ => panic!("{status} {body}"),
        }
    }
    assert_eq!(orders.len(), 1, "{answers:?}");
    let (status, body) = world
        .check_out("one", &cart("enamel-mug", 2))
        .await
        .expect("an answer");
    assert_eq!(
        (status, orders.contains(&body["order_id"].to_string())),
        (201, true)
    );
    let other = world.check_out("one", &cart("enamel-mug", 3)).await;
    assert_eq!(other.map(|(status, _)| status), Some(422));
    assert_eq!(world.audit().await.orders.len(), 1);
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let Some(world) = world().await else { return };
    let declined =
        json!({"items": [{"sku": "sea-salt", "quantity": 1}], "card": "4000000000000002"});
    let among_others = json!({"items": [{"sku": "sea-salt", "quantity": 1}, {"sku": "anchor", "quantity": 1}], "card": crate::world::CARD});
    for (key, cart, status) in [
        ("declined", declined, 402),
        ("declined-too-much", cart("bottle-ship", 13), 409),
        ("unknown", cart("anchor", 1), 400),
        ("unknown-among-others", among_others, 400),
        (
            "nothing",
            json!({"items": [], "card": "4242424242424242"}),
            400,
        ),
        ("", cart("sea-salt", 1), 400),
    ] {
        for _ in 0..2 {
            let answer = world.check_out(key, &cart).await;
            let (answered, body) = answer.expect("an answer");
            assert_eq!(answered, status, "{key}: {body}");
            assert!(body["error"].is_string(), "{key}: {body}");
        }
    }
    assert!(world.audit().await.orders.is_empty());
}
