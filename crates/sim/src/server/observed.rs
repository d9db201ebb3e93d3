//! What nodes say they see: soft state, lost with the server.

use std::collections::BTreeMap;

use model::compute::InstanceReport;
use model::control::{Heartbeat, HeartbeatAnswer, observed_digest};
use model::ids::{InstanceName, NodeName, SessionId};
use plan::Instant;
use plan::nodes::{self, Input};

use crate::Bug;
use crate::world::{ToNode, World};

/// One node as it last told.
pub(super) struct Picture {
    session: SessionId,
    /// All of it is known.
    whole: bool,
    pub(super) reports: BTreeMap<InstanceName, InstanceReport>,
}

impl World {
    /// `observed` is for the eyes of the invariants: what the node saw when it sent this.
    pub(super) fn heartbeat(
        &mut self,
        node: &NodeName,
        heartbeat: &Heartbeat,
        sent_at: Instant,
        observed: &[InstanceReport],
    ) {
        let now = self.now();
        let trusts = self.options.bug == Some(Bug::TrustsDeltas);
        let (session, sequence) = (heartbeat.session, heartbeat.sequence);
        let Some(server) = &mut self.server else {
            return;
        };
        if !server.watch.is_news(node, session, sequence, now) {
            return;
        }
        let picture = server
            .pictures
            .entry(node.clone())
            .or_insert_with(|| Picture::new(session));
        picture.take(heartbeat);
        picture.whole |= trusts;
        let complete = picture.whole;
        let is_true = picture.reports.values().eq(observed);
        let epoch = server.epoch;
        let input = Input::Heartbeat {
            node,
            session,
            complete,
        };
        let outputs = nodes::step(&mut server.watch, input, now);
        if complete {
            self.invariants.heard(epoch, node);
        }
        if complete && !is_true {
            self.violated(format!(
                "what {node} sees is believed to be known, and is not"
            ));
        }
        self.take_node_outputs(outputs);
        self.lose_early(Some(node));
        let answer = HeartbeatAnswer {
            epoch,
            send_full: !complete,
        };
        let answer = ToNode::Answer {
            session,
            sequence,
            answer,
            sent_at,
        };
        self.send_to_node(node, answer);
    }
}

impl Picture {
    fn new(session: SessionId) -> Self {
        Self {
            session,
            whole: false,
            reports: BTreeMap::new(),
        }
    }

    fn take(&mut self, heartbeat: &Heartbeat) {
        if self.session != heartbeat.session {
            *self = Self::new(heartbeat.session);
        }
        if heartbeat.full {
            self.reports.clear();
        }
        for report in &heartbeat.changed {
            let name = report.instance.name.clone();
            self.reports.insert(name, report.clone());
        }
        for gone in &heartbeat.gone {
            self.reports.remove(&gone.name);
        }
        let matches = observed_digest(self.reports.values()) == heartbeat.digest;
        self.whole = matches && (heartbeat.full || self.whole);
    }
}
