//! What may be found wrong, in words.

use model::ids::{Epoch, InstanceName, NodeName, ReleaseNumber, ResourceId};
use model::units::Bytes;

/// What does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{service}: two placements are named {instance}")]
    SameInstance {
        service: ResourceId,
        instance: InstanceName,
    },
    #[error("{service}: {first} and {second} both run what runs before a rollout")]
    PreparedTwice {
        service: ResourceId,
        first: InstanceName,
        second: InstanceName,
    },
    #[error(
        "{service}: {instance} is to take the place of {replaced}, and not both are copies that run"
    )]
    ReplacesNobody {
        service: ResourceId,
        instance: InstanceName,
        replaced: InstanceName,
    },
    #[error("{service}: {first} and {second} take the places of others at the same time")]
    TwoMoves {
        service: ResourceId,
        first: InstanceName,
        second: InstanceName,
    },
    #[error("{service}: slot {slot} is held by {first} and {second}")]
    SlotHeldTwice {
        service: ResourceId,
        slot: u32,
        first: InstanceName,
        second: InstanceName,
    },
    #[error("{service}: {instance} has volumes and no slot")]
    NoSlot {
        service: ResourceId,
        instance: InstanceName,
    },
    #[error("{service}: {instance} runs on {node}, the home of its slot is {home}")]
    AwayFromHome {
        service: ResourceId,
        instance: InstanceName,
        node: NodeName,
        home: NodeName,
    },
    #[error("{service}: {instance} should run on {node}, which {why}")]
    NowhereToRun {
        service: ResourceId,
        instance: InstanceName,
        node: NodeName,
        why: &'static str,
    },
    #[error("{service}: epoch {epoch} of {instance} is not below the next, {next}")]
    EpochNotBelowNext {
        service: ResourceId,
        instance: InstanceName,
        epoch: Epoch,
        next: Epoch,
    },
    #[error("{service}: {first} and {second} have the same epoch")]
    SameEpoch {
        service: ResourceId,
        first: InstanceName,
        second: InstanceName,
    },
    #[error("{service}: the number of {instance} is not below the next, {next}")]
    NumberNotBelowNext {
        service: ResourceId,
        instance: InstanceName,
        next: u64,
    },
    #[error("{service}: {instance} is of release {release}, which does not exist")]
    UnknownRelease {
        service: ResourceId,
        instance: InstanceName,
        release: ReleaseNumber,
    },
    #[error("node {node}: {used} of memory are given out, it has {has}")]
    OverMemory {
        node: NodeName,
        used: Bytes,
        has: Bytes,
    },
    #[error("{service}: {instance} is pending without a reason")]
    PendingWithoutReason {
        service: ResourceId,
        instance: InstanceName,
    },
    // Of steps:
    #[error("{service}: the next {what} went back")]
    WentBack {
        service: ResourceId,
        what: &'static str,
    },
    #[error("{service}: the home of slot {slot} was changed or forgotten")]
    HomeForgotten { service: ResourceId, slot: u32 },
    #[error("{service}: {instance} was moved, or its epoch changed, under the same name")]
    Moved {
        service: ResourceId,
        instance: InstanceName,
    },
    #[error("{service}: {instance} was told to run again after it was told to leave")]
    CalledBack {
        service: ResourceId,
        instance: InstanceName,
    },
    #[error("{service}: slot {slot} got {second} in the same step as {first} went")]
    SlotNotVacated {
        service: ResourceId,
        slot: u32,
        first: InstanceName,
        second: InstanceName,
    },
    #[error("{service}: {instance} broke the required spread")]
    SpreadBroken {
        service: ResourceId,
        instance: InstanceName,
    },
    #[error(
        "{service}: {instance} was placed on {node}, which has less CPU in all than it asks for"
    )]
    OverCpu {
        service: ResourceId,
        instance: InstanceName,
        node: NodeName,
    },
    #[error("{service}: {instance} was placed on {node}, which is cordoned")]
    PlacedOnCordoned {
        service: ResourceId,
        instance: InstanceName,
        node: NodeName,
    },
}
