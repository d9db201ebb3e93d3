//! An online store, as its owners would write it: ten small services, one program with a subcommand for each. It knows the port
//! to listen on and the addresses of what it needs, and nothing of where it runs.
//!
//! | module | what it is |
//! |---|---|
//! | [`storefront`] | the pages a person sees |
//! | [`cart`] | what somebody means to buy, by a signed cookie |
//! | [`checkout`] | the one click that is several owners' work: a saga that ends completed or compensated |
//! | [`inventory`] | products and stock: reserve, release, settle |
//! | [`payment`] | the shop's side of paying: holds the key to the provider, repeats, gives up in time |
//! | [`provider`] | a card provider that is not ours: slow, failing and repeating at set rates |
//! | [`orders`] | orders and their events, one transaction |
//! | [`email`], [`shipping`] | workers on the events of orders |
//! | [`catalogue`] | what is sold, and how much of it there is at first |
//! | [`schema`] | the tables, made by `shop migrate` |
//! | [`service`] | what each service does alike: settings, listening, leaving, refusing |
//! | [`batch`] | one statement for all who ask at the same time |
//! | [`database`] | PostgreSQL that may be gone for seconds: a small pool in which everything has a deadline |
//! | [`peer`] | calls to the other services: deadlines and bounded repeats |
//! | [`chance`] | randomness |
//! | [`events`] | an order's event as it is delivered |
//! | [`ledger`] | what an auditor reads, page by page |
//! | [`by_hand`] | all of it on one machine with nothing else, for a look and for the tests |

pub mod batch;
pub mod by_hand;
pub mod cart;
pub mod catalogue;
pub mod chance;
pub mod checkout;
pub mod database;
pub mod email;
pub mod events;
pub mod inventory;
pub mod ledger;
pub mod orders;
pub mod payment;
pub mod peer;
pub mod provider;
pub mod schema;
pub mod service;
pub mod shipping;
pub mod storefront;
