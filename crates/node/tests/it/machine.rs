//! What a node tells of its machine and of volumes, and what it does not start where somebody else waits for its calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, chown};

use model::compute::*;
use model::state::Volume;
use model::units::Bytes;
use rustix::process::Signal;

use crate::life::proxy_of;
use crate::world::*;

#[tokio::test]
async fn a_node_tells_what_its_machine_has() {
    let node = Node::start().await;
    let told = node
        .server
        .look(|state| (state.disk, state.programs.clone()));
    let postgres = BTreeMap::from([("postgres".to_owned(), BTreeSet::from([15]))]);
    assert_eq!(told.1, Some(postgres.clone()));
    let disk = told.0.expect("its disk");
    assert!(disk.size.0 > 0 && disk.free <= disk.size, "{disk:?}");
    let joined = node.server.look(|state| state.joined_with.clone());
    assert_eq!(joined, Some(postgres), "the first decision can rest on it");
}

#[tokio::test]
async fn files_of_another_in_a_volume_are_named_until_they_are_mended() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: all files are one user's");
        return;
    }
    let node = Node::start().await;
    let mut web = web("web-1");
    let size = Bytes::mebibytes(1);
    web.spec.volumes = [("data".parse().unwrap(), Volume { size })].into();
    web.slot = Some(0);
    node.server.want(vec![web.clone()]);
    let report = node.until_ready("web-1").await;
    assert_eq!(node.server.look(|state| state.notices.len()), 0);

    // Restored by root, as an archive is unpacked.
    let data = node.directory().join("volumes/shop/web/0/data");
    std::fs::create_dir(data.join("restored")).unwrap();
    std::fs::write(data.join("restored/rows"), "x").unwrap();
    signal(report.pid.unwrap(), Signal::KILL);
    node.until("the files are named", |node| {
        node.server.look(|state| state.notices.len() == 1)
    })
    .await;
    let said = node.server.look(|state| state.notices[0].reason.clone());
    let command = format!("chown -R 70123:70123 {}", data.display());
    assert_eq!(said.code, "foreign-files");
    assert!(
        said.message.contains(&command) && said.message.contains("data/restored (of user 0)"),
        "{said}"
    );
    let is_said = |node: &Node| {
        let codes = |state: &mut crate::server::State| {
            let mut codes = state.events.iter().map(|event| event.reason.code.clone());
            codes.any(|code| code == "foreign-files")
        };
        node.server.look(codes)
    };
    node.until("an event tells it", is_said).await;

    // Mended, it is told no more, whether or not anything is started.
    for path in ["restored", "restored/rows"] {
        chown(data.join(path), Some(70_123), Some(70_123)).unwrap();
    }
    node.until("nothing is to be mended", |node| {
        node.server.look(|state| state.notices.is_empty())
    })
    .await;

    // A volume whose top is another's is its user's as a whole at the next start.
    node.server.want(vec![]);
    node.until("gone", |node| node.server.report("web-1").is_none())
        .await;
    for path in ["restored/rows", "restored", ""] {
        chown(data.join(path), Some(61_250), Some(61_250)).unwrap();
    }
    node.server.want(vec![web]);
    node.until_ready("web-1").await;
    for path in ["restored/rows", "restored", ""] {
        let owner = std::fs::metadata(data.join(path)).unwrap().uid();
        assert_eq!(owner, 70_123, "{path}");
    }
}

fn with_need(instance: &str, need: &str) -> DesiredInstance {
    let mut one = web(instance);
    one.spec.needs = [(need.parse().unwrap(), Need::default())].into();
    one
}

fn url(report: &InstanceReport, name: &str) -> SocketAddr {
    let text = std::fs::read(format!("/proc/{}/environ", report.pid.unwrap())).unwrap();
    let text = String::from_utf8(text).unwrap();
    let mut entries = text.split('\0').filter_map(|entry| entry.split_once('='));
    let (_, url) = entries.find(|(found, _)| *found == name).unwrap();
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

#[tokio::test]
async fn nobody_is_led_to_whoever_listens_on_a_door_first() {
    let node = Node::start().await;
    // As whoever waits on the first addresses for services to come.
    let [_, x, y, _] = node.block.octets();
    let mut held = Vec::new();
    for last in 1..=3 {
        for port in 7080..7096 {
            held.extend(TcpListener::bind((Ipv4Addr::from([127, x, y, last]), port)));
        }
    }
    assert!(held.len() > 16, "{}", held.len());
    node.server.want(vec![with_need("web-1", "cart")]);
    let report = node.until_ready("web-1").await;
    let door = url(&report, "CART_URL");
    let taken: Vec<SocketAddr> = held.iter().map(|one| one.local_addr().unwrap()).collect();
    assert!(!taken.contains(&door), "{door}");
    std::net::TcpStream::connect(door).expect("the proxy listens there");

    // While the proxy does not listen there, nothing starts that would call.
    signal(proxy_of(&node).expect("a proxy"), Signal::STOP);
    node.server.want(vec![
        with_need("web-1", "cart"),
        with_need("other-1", "stock"),
    ]);
    let report = node
        .until_reason("other-1", "waits for the way to stock")
        .await;
    assert_eq!((report.pid, report.ready), (None, false));
    // The node replaces a proxy that does not answer.
    let report = node.until_ready("other-1").await;
    std::net::TcpStream::connect(url(&report, "STOCK_URL")).expect("the proxy listens there");
}
