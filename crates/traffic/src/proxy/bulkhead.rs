//! A thread of its own for parties with many connections.
//!
//! A worker serves its connections one after the other. A client that says something on 2,000 of them in one moment, or asks for 1,000 large answers at
//! once, would be served all of that before anybody who comes a moment later. So what a party opens beyond its first few connections is served beside the
//! worker, by a second thread with its own connections to instances and peers, and the kernel shares the processor between the two. A peer knows
//! such a connection by its application protocol ([`Width::Crowd`](super::window::Width::Crowd)), and serves it by such a thread as well.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::shares::{Party, Place};
use super::worker::{self, Common, Worker};

/// Connections of one client that a worker serves itself: far more than a browser opens.
const MOST_OF_CLIENT: usize = 64;
/// Of one service of this node: many times the pool of a program.
const MOST_OF_SERVICE: usize = 256;
/// Of all IPv6 clients of one site (a /48), each of which is known by its /64.
const MOST_OF_SITE: usize = 256;
/// Connections of one client whose requests may have wide streams ([`super::window`]).
const MOST_WIDE: usize = 16;
/// Added to what the worker has: where the processor does not suffice, the worker itself has three times as much of it (sched(7)).
const NICE: i32 = 5;
const NICE_MOST: i32 = 19;

/// The thread beside one worker.
pub struct Bulkhead {
    worker: Arc<Worker>,
    runtime: Handle,
}

impl Bulkhead {
    /// `served`: dropped when the thread has ended.
    pub fn start(
        common: Arc<Common>,
        seed: u64,
        served: mpsc::Sender<Infallible>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (worker, ended) = Worker::new(common, None, seed);
        let bulkhead = Self {
            worker: worker.clone(),
            runtime: runtime.handle().clone(),
        };
        std::thread::Builder::new()
            .name("bulkhead".to_owned())
            .spawn(move || {
                // Of this thread alone. It may always ask for less.
                let ours = rustix::process::getpriority_process(None).unwrap_or(0);
                let _ = rustix::process::setpriority_process(None, (ours + NICE).min(NICE_MOST));
                runtime.block_on(worker::work(worker, ended));
                drop(served);
            })?;
        Ok(bulkhead)
    }

    /// Serves there what has been accepted here.
    pub fn serve<Served>(&self, serve: impl FnOnce(Arc<Worker>) -> Served + Send + 'static)
    where
        Served: Future<Output = ()> + Send + 'static,
    {
        let worker = self.worker.clone();
        self.runtime.spawn(async move {
            let alive = worker.alive();
            serve(worker).await;
            drop(alive);
        });
    }
}

/// Whether it is of a party with many connections. A declared balancer brings many clients, and is none.
pub fn is_one_of_many(place: &Place) -> bool {
    match place.party() {
        Party::Balancer(_) => false,
        Party::Caller(_) => place.of_party() > MOST_OF_SERVICE,
        _ => place.of_party() > MOST_OF_CLIENT || place.of_site() > MOST_OF_SITE,
    }
}

/// Whether what it asks for may have a wide stream: a client that asks for a hundred large answers at once would have most of the worker's time.
pub fn may_be_wide(place: &Place) -> bool {
    match place.party() {
        Party::Client(_) => place.of_party() <= MOST_WIDE && place.of_site() <= MOST_OF_CLIENT,
        _ => true,
    }
}

/// Serves a connection by the worker that has accepted it, or by the thread beside that.
pub async fn serve<Served>(
    worker: Arc<Worker>,
    stream: TcpStream,
    place: Place,
    serve: impl FnOnce(Arc<Worker>, TcpStream, Place) -> Served + Send + 'static,
) where
    Served: Future<Output = ()> + Send + 'static,
{
    let bulkhead = is_one_of_many(&place).then(|| worker.bulkhead());
    let Some(bulkhead) = bulkhead.flatten() else {
        return serve(worker, stream, place).await;
    };
    // A socket is looked at by the thread in whose runtime it was made.
    let Ok(stream) = stream.into_std() else {
        return;
    };
    bulkhead.serve(move |worker| async move {
        if let Ok(stream) = TcpStream::from_std(stream) {
            serve(worker, stream, place).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::proxy::shares::{Kind, Shares};
    use crate::proxy::view::Caller;

    /// How many of a party's connections the worker serves itself, and how many may be wide.
    fn counted(kind: Kind, party: &Party) -> (usize, usize) {
        let shares = Shares::new(1 << 16);
        let take = || shares.take(kind, party.clone()).unwrap();
        let places: Vec<_> = (0..2 * MOST_OF_SERVICE).map(|_| take()).collect();
        let count = |is: fn(&Place) -> bool| places.iter().filter(|place| is(place)).count();
        (count(|place| !is_one_of_many(place)), count(may_be_wide))
    }

    #[test]
    fn a_crowd_begins_where_a_browser_or_a_pool_has_long_ended() {
        let address = [192, 0, 2, 1].into();
        let all = 2 * MOST_OF_SERVICE;
        let client = counted(Kind::Gateway, &Party::client(address));
        assert_eq!(client, (MOST_OF_CLIENT, MOST_WIDE));
        let service = Party::Caller(Caller::Service("p/s".parse().unwrap()));
        assert_eq!(counted(Kind::Doors, &service), (MOST_OF_SERVICE, all));
        // 20 for each of a site's /64s: none of them has many, and all together do.
        let shares = Shares::new(1 << 16);
        let places: Vec<_> = (0..20 * 32_u128)
            .map(|n| {
                let net = (0x2001_0db8_0001 << 80) | ((n % 32) << 64) | 1;
                let party = Party::client(std::net::Ipv6Addr::from_bits(net).into());
                shares.take(Kind::Gateway, party).unwrap()
            })
            .collect();
        let alone = places.iter().filter(|place| !is_one_of_many(place));
        assert_eq!(alone.count(), MOST_OF_SITE);
        let wide = places.iter().filter(|place| may_be_wide(place));
        assert_eq!(wide.count(), MOST_OF_CLIENT);
        let balancer = Party::Balancer(address);
        assert_eq!(counted(Kind::Gateway, &balancer), (all, all));
    }

    #[tokio::test]
    async fn a_crowd_is_served_beside_the_worker_and_waited_for() {
        let common = Common::new(1, None);
        let (worker, mut ended) = Worker::new(common.clone(), Some(0), 1);
        worker.start_bulkhead().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shares, party) = (Shares::new(1 << 16), Party::client(address.ip()));
        let take = || shares.take(Kind::Gateway, party.clone()).unwrap();
        let mut places: Vec<_> = (0..=MOST_OF_CLIENT).map(|_| take()).collect();
        let (last, first) = (places.pop().unwrap(), places.remove(0));
        for (place, beside) in [(first, false), (last, true)] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let (told, mut served_beside) = mpsc::channel(1);
            let answer = async move |stream: &mut TcpStream| {
                let thread = std::thread::current();
                told.send(thread.name() == Some("bulkhead")).await.unwrap();
                stream.write_all(b"x").await.unwrap();
            };
            let served = move |_, mut stream, _place| async move { answer(&mut stream).await };
            serve(worker.clone(), stream, place, served).await;
            assert_eq!(served_beside.recv().await, Some(beside));
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
        common.stop();
        drop(worker);
        let ends = tokio::time::timeout(Duration::from_secs(10), ended.recv());
        assert_eq!(ends.await, Ok(None));
    }
}
