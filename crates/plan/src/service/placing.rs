//! Placing one copy, or recording why it has no place.

use model::compute::{Pending, Placement, Purpose, Role, Service, Spread, Wanted};
use model::control::Reason;
use model::ids::{Epoch, InstanceName, NodeName, ReleaseNumber};
use model::signals::Level;

use super::{Step, balance};
use crate::place::{self, Ceiling, Request};

/// What is to be placed.
pub(super) struct Wish<'a> {
    pub release: ReleaseNumber,
    pub slot: Option<u32>,
    pub purpose: Purpose,
    pub ceiling: Ceiling,
    pub avoid: &'a [NodeName],
    /// The copy whose place it takes, on a node where the copies then stand more evenly.
    pub instead_of: Option<&'a Placement>,
}

/// A refusal, which the next copy that asks for the same would meet again.
pub(super) struct Refusal {
    release: ReleaseNumber,
    ceiling: Ceiling,
    avoid: usize,
    reason: Reason,
}

impl Wish<'_> {
    /// One that asks for the same would meet the same refusal.
    fn is_common(&self) -> bool {
        self.purpose == Purpose::Serve && self.instead_of.is_none()
    }
}

impl<'a> Step<'a> {
    /// Replacements of what was lost may fill a node to the full.
    pub(super) fn ceiling(&self) -> Ceiling {
        match self.cluster.has_lost_workers() {
            true => Ceiling::Full,
            false => Ceiling::Watermark,
        }
    }

    /// Places one copy, or records it as pending. A node to avoid is better than none. Says whether it was placed.
    pub(super) fn place(&mut self, wish: &Wish<'_>) -> bool {
        let (instance, since) = self.name(wish.slot);
        let anywhere = Wish {
            avoid: &[],
            ..*wish
        };
        let tried = self.try_place(wish, &instance);
        match tried.or_else(|_| self.try_place(&anywhere, &instance)) {
            Ok(()) => true,
            Err(reason) => {
                let release = wish.release;
                self.pending.push(Pending {
                    instance,
                    release,
                    slot: wish.slot,
                    reason,
                    since,
                });
                false
            }
        }
    }

    pub(super) fn try_place(
        &mut self,
        wish: &Wish<'_>,
        instance: &InstanceName,
    ) -> Result<(), Reason> {
        let home = wish
            .slot
            .and_then(|slot| self.group.homes.get(&slot))
            .cloned();
        let known = self.refusal.as_ref().filter(|known| {
            let asked = (known.release, known.ceiling, known.avoid);
            wish.is_common()
                && home.is_none()
                && asked == (wish.release, wish.ceiling, wish.avoid.len())
        });
        if let Some(known) = known {
            return Err(known.reason.clone());
        }
        let going = self.going(wish.release);
        let request = Request {
            home: home.as_ref(),
            ..self.request(wish, instance, &going)
        };
        match place::place(self.cluster, &request) {
            Ok(placed) => {
                self.placed(wish, instance, placed);
                Ok(())
            }
            Err(refused) => {
                if wish.is_common() && home.is_none() {
                    self.refusal = Some(Refusal {
                        release: wish.release,
                        ceiling: wish.ceiling,
                        avoid: wish.avoid.len(),
                        reason: refused.reason.clone(),
                    });
                }
                Err(refused.reason)
            }
        }
    }

    /// The node where it would be placed.
    pub(super) fn find(&mut self, wish: &Wish<'_>, instance: &InstanceName) -> Option<NodeName> {
        let going = self.going(wish.release);
        let request = self.request(wish, instance, &going);
        place::find(self.cluster, &request)
    }

    fn request<'r>(
        &self,
        wish: &Wish<'r>,
        instance: &'r InstanceName,
        going: &'r [NodeName],
    ) -> Request<'r>
    where
        'a: 'r,
    {
        let spec = self.spec(wish.release);
        Request {
            service: self.view.id,
            instance,
            size: place::size_of(spec),
            labels: &spec.labels,
            spread: spread_of(wish.purpose, spec),
            home: None,
            ceiling: wish.ceiling,
            avoid: wish.avoid,
            barred: match wish.slot {
                Some(_) => self.view.barred,
                None => &[],
            },
            going,
            instead_of: wish.instead_of.map(|old| &old.node),
        }
    }

    /// Where copies are that `release` replaces, that already leave, or whose place another is to take.
    fn going(&self, release: ReleaseNumber) -> Vec<NodeName> {
        let replaced: Vec<_> = self
            .moves()
            .filter_map(|new| new.replaces.as_ref())
            .collect();
        let goes = |placement: &&Placement| {
            placement.release != release
                || placement.wanted == Wanted::Leave
                || replaced.contains(&&placement.instance)
        };
        self.group
            .placements
            .iter()
            .filter(goes)
            .map(|placement| placement.node.clone())
            .collect()
    }

    fn placed(&mut self, wish: &Wish<'_>, instance: &InstanceName, placed: place::Placed) {
        let epoch = self.group.next_epoch.max(Epoch(1));
        self.group.next_epoch = epoch.next();
        let reason = match wish.instead_of {
            Some(old) => balance::why_here(self, old, instance, &placed),
            None => placed.reason,
        };
        self.say(Level::Info, instance.to_string(), reason.clone());
        self.group.placements.push(Placement {
            instance: instance.clone(),
            release: wish.release,
            node: placed.node,
            slot: wish.slot,
            role: Role::Member,
            purpose: wish.purpose,
            epoch,
            wanted: Wanted::Run,
            replaces: wish.instead_of.map(|old| old.instance.clone()),
            reason,
            at: self.now.at,
            placed_at: None,
        });
    }

    /// The name of the next copy: that of one already pending, else a new number.
    pub(super) fn name(&mut self, slot: Option<u32>) -> (InstanceName, jiff::Timestamp) {
        let placements = &self.group.placements;
        let is_free = |pending: &Pending| {
            pending.slot == slot
                && !placements
                    .iter()
                    .any(|placed| placed.instance == pending.instance)
        };
        if let Some(index) = self.group.pending.iter().position(is_free) {
            let pending = self.group.pending.remove(index);
            return (pending.instance, pending.since);
        }
        let number = self.group.next_instance.max(1);
        self.group.next_instance = number + 1;
        let name = InstanceName::new(format!("{}-{number}", self.view.id.name));
        (
            name.expect("a service's name and a number are a DNS label"),
            self.now.at,
        )
    }
}

/// What is no copy may stand anywhere.
fn spread_of(purpose: Purpose, spec: &Service) -> Spread {
    Spread {
        require: spec.spread.require && purpose == Purpose::Serve,
        ..spec.spread
    }
}
