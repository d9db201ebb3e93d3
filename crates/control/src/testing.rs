//! What the tests of this crate build their worlds from.

use model::boundary::PrincipalName;
use model::compute::{Release, ReleaseOrigin, Service, Work};
use model::ids::ReleaseNumber;
use model::units::Bytes;
use store::Revision;

use crate::world::Stored;

pub fn service(replicas: u32) -> Service {
    let work = Work::Process {
        run: vec!["/bin/server".to_owned()],
        artifact: None,
    };
    Service {
        replicas,
        memory: Bytes::mebibytes(100),
        ..Service::of(work)
    }
}

pub fn stored<T>(value: T) -> Stored<T> {
    Stored {
        value,
        modified: Revision::from_number(1),
    }
}

pub fn release(number: ReleaseNumber) -> Release {
    Release {
        service: "web".parse().expect("a name"),
        number,
        spec: service(1),
        author: PrincipalName("admin:root".to_owned()),
        at: jiff::Timestamp::UNIX_EPOCH,
        origin: ReleaseOrigin::Apply,
        diff: Vec::new(),
        message: None,
        failed: false,
        same_as: None,
    }
}
