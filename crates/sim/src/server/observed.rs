//! What nodes say they see: soft state, lost with the server.

use model::compute::InstanceReport;
use model::control::HeartbeatAnswer;
use model::ids::{NodeName, SessionId};
use plan::Instant;
use plan::nodes::{self, Input};

use crate::world::{ToNode, World};

impl World {
    pub(super) fn heartbeat(
        &mut self,
        node: &NodeName,
        session: SessionId,
        sequence: u64,
        reports: Vec<InstanceReport>,
        sent_at: Instant,
    ) {
        let now = self.now();
        let Some(server) = &mut self.server else {
            return;
        };
        if !server.watch.is_news(node, session, sequence, now) {
            return;
        }
        let picture = reports
            .into_iter()
            .map(|report| (report.instance.name.clone(), report))
            .collect();
        server.pictures.insert(node.clone(), picture);
        let epoch = server.epoch;
        let outputs = nodes::step(
            &mut server.watch,
            Input::Heartbeat {
                node,
                session,
                complete: true,
            },
            now,
        );
        self.invariants.heard(epoch, node);
        self.take_node_outputs(outputs);
        self.lose_early(Some(node));
        let answer = HeartbeatAnswer {
            epoch,
            send_full: false,
        };
        self.send_to_node(
            node,
            ToNode::Answer {
                session,
                answer,
                sent_at,
            },
        );
    }
}
