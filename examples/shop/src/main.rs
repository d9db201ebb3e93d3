//! `shop SERVICE`: one program, a subcommand for each service, one for the tables, and one that runs the whole shop by hand.

use std::process::ExitCode;

use shop::service::Settings;
use shop::{
    by_hand, cart, checkout, email, inventory, orders, payment, provider, schema, shipping,
    storefront,
};

const USAGE: &str =
    "usage: shop storefront|cart|checkout|payment|provider|inventory|orders|email|shipping
       shop migrate [--outbox]
       shop by-hand [FOLDER]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // One thread is plenty for each, and keeps a copy below ten megabytes.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(&arguments)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

async fn run(arguments: &[&str]) -> Result<(), shop::service::Error> {
    let settings = Settings::of_environment();
    match arguments {
        ["storefront"] => storefront::run(&settings).await,
        ["cart"] => cart::run(&settings).await,
        ["checkout"] => checkout::run(&settings).await,
        ["payment"] => payment::run(&settings).await,
        ["provider"] => provider::run(&settings).await,
        ["inventory"] => inventory::run(&settings).await,
        ["orders"] => orders::run(&settings).await,
        ["email"] => email::run(&settings).await,
        ["shipping"] => shipping::run(&settings).await,
        ["migrate"] => schema::migrate(&settings, false).await,
        ["migrate", "--outbox"] => schema::migrate(&settings, true).await,
        ["by-hand"] => by_hand::run(None).await,
        ["by-hand", folder] => by_hand::run(Some(folder)).await,
        _ => Err(shop::service::Error::Usage(USAGE)),
    }
}
