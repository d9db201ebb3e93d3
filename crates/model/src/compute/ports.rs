//! Ports of a service beside its own. To callers, roads and proxies each is what a service is, under the name `SERVICE-PORT`: so its callers find
//! it in `SERVICE_PORT_URL`, and nothing else in the project may have that name.

use crate::ids::{InstanceName, ResourceName};
use crate::traffic::Protocol;

use super::Service;

/// Ports of one service, beside its own.
pub const PORTS_MAX: usize = 16;

/// The name of a port on the road. `None`: together they are too long.
pub fn name_of(service: &ResourceName, port: &ResourceName) -> Option<ResourceName> {
    ResourceName::new(format!("{service}-{port}")).ok()
}

/// The name of an instance at one of its ports: that of `broker-2` at `admin` is `broker-admin-2`. Numbers are the service's own, so nothing else
/// has it.
pub fn instance_of(
    instance: &InstanceName,
    service: &ResourceName,
    port: &ResourceName,
) -> Option<InstanceName> {
    let number = instance.as_str().strip_prefix(service.as_str())?;
    InstanceName::new(format!("{service}-{port}{number}")).ok()
}

impl Service {
    /// What each of its ports is called on the road, where the service is called `name`: with the port's own name, and what it speaks.
    pub fn ports_of<'a>(
        &'a self,
        name: &'a ResourceName,
    ) -> impl Iterator<Item = (ResourceName, &'a ResourceName, Protocol)> {
        let all = self.ports.iter();
        all.filter_map(|(port, protocol)| Some((name_of(name, port)?, port, *protocol)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_called_after_its_service() {
        let name = |text: &str| text.parse::<ResourceName>().unwrap();
        let (broker, admin) = (name("broker"), name("admin"));
        assert_eq!(name_of(&broker, &admin), Some(name("broker-admin")));
        let instance = |text: &str| text.parse::<InstanceName>().unwrap();
        for (own, at_port) in [
            ("broker-2", "broker-admin-2"),
            ("broker-run-r01", "broker-admin-run-r01"),
        ] {
            let found = instance_of(&instance(own), &broker, &admin);
            assert_eq!(found, Some(instance(at_port)));
        }
        let long = name(&"x".repeat(45));
        assert_eq!(name_of(&long, &admin), None, "longer than a name may be");
    }
}
