//! What the choice of an endpoint asks.

use std::sync::Arc;

use model::ids::NodeName;

use crate::balance::Candidates;
use crate::load::{self, Load};
use crate::proxy::view::Endpoint;

/// The endpoints of one destination, as one request sees them.
pub struct Pool<'a> {
    pub endpoints: &'a [Endpoint],
    pub tried: &'a [Arc<Load>],
    pub broke_on: Option<&'a NodeName>,
    pub safe: bool,
    pub now: load::Instant,
}

impl Pool<'_> {
    /// Ejected, resting, or on the node where the last try broke off.
    pub fn is_out(&self, index: usize) -> bool {
        let endpoint = &self.endpoints[index];
        endpoint.load.avoided(self.now)
            || self.broke_on.is_some() && endpoint.node() == self.broke_on
    }
}

impl Candidates for Pool<'_> {
    fn cost(&self, index: usize) -> f64 {
        self.endpoints[index].load.cost(self.now)
    }
    fn in_flight(&self, index: usize) -> u32 {
        self.endpoints[index].load.in_flight()
    }
    fn avoided(&self, index: usize) -> bool {
        self.is_out(index) || !self.safe && self.endpoints[index].load.is_suspect(self.now)
    }
    fn tried(&self, index: usize) -> bool {
        let load = &self.endpoints[index].load;
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, load))
    }
}
