//! New releases that ask for more than there is.

use super::*;
use model::units::MilliCpu;

fn asking(replicas: u32, cpu: u64) -> Service {
    let mut spec = service(replicas);
    spec.cpu = MilliCpu(cpu);
    spec.memory = Bytes::mebibytes(10);
    spec
}

/// The nodes have 4 CPUs each, of which 3.2 are given out.
#[test]
fn more_cpu_than_fits_is_pending_and_the_old_copies_stay() {
    // Nodes, copies, CPU before and after; whether it is rolled out.
    let table = [
        (3, 3, 5, 100_000, false),
        (3, 3, 5, 4_001, false),
        (3, 3, 5, 3_201, false),
        (3, 3, 5, 3_200, true),
        (1, 1, 5, 3_200, true),
        // What goes makes room for what comes.
        (1, 1, 3_000, 3_100, true),
        (1, 1, 3_000, 3_300, false),
        // Together they would be too many.
        (1, 3, 100, 1_600, false),
        (1, 3, 100, 1_000, true),
        // Less or the same is never refused.
        (1, 3, 1_000, 1_000, true),
        (1, 3, 1_000, 900, true),
    ];
    for volume in [false, true] {
        for (nodes, replicas, before, after, fits) in table {
            // What is replaced in place is bound to its node, which CPU given out twice does not forbid.
            if volume && (after == 1_600 || (3_201..=4_000).contains(&after)) {
                continue;
            }
            let spec = |cpu| match volume {
                true => with_volume(asking(replicas, cpu)),
                false => asking(replicas, cpu),
            };
            let nodes: Vec<_> = three_zones().into_iter().take(nodes).collect();
            let mut world = World::on(nodes, spec(before));
            world.run(4);
            assert_eq!(world.phase(), RolloutPhase::Done);
            world.release(spec(after));
            world.run(30);
            let case = format!("{volume} {replicas} {before} {after}");
            if fits {
                assert_eq!(
                    (world.phase(), world.of_release(2)),
                    (RolloutPhase::Done, replicas as usize),
                    "{case}"
                );
                continue;
            }
            assert_eq!(world.phase(), RolloutPhase::Rolling, "{case}");
            assert_eq!(world.ready(), replicas as usize, "{case}");
            let says = &world.group.pending[0].reason.message;
            assert!(says.contains("cpu"), "{case}: {says}");
            assert!(!says.contains("18446744073709551"), "{case}: {says}");
            world.run(40);
            assert_eq!(world.phase(), RolloutPhase::Failed, "{case}");
            world.run(10);
            assert_eq!(
                (world.of_release(1), world.ready()),
                (replicas as usize, replicas as usize),
                "{case}"
            );
        }
    }
}

#[test]
fn more_memory_than_its_home_has_leaves_the_old_copy_there() {
    let mut world = World::new(with_volume(asking(1, 100)));
    world.run(3);
    let mut more = with_volume(asking(1, 100));
    more.memory = Bytes::mebibytes(2_000);
    world.release(more);
    world.run(30);
    assert_eq!((world.ready(), world.of_release(1)), (1, 1));
    let says = &world.group.pending[0].reason.message;
    assert!(
        says.contains("less than 2000Mi of memory free (1000Mi)"),
        "{says}"
    );
    world.release(with_volume(asking(1, 100)));
    world.run(10);
    assert_eq!(
        (world.phase(), world.of_release(3)),
        (RolloutPhase::Done, 1)
    );
}

/// What is told of a refusal has numbers that a node can have.
#[test]
fn a_refusal_names_what_there_is() {
    let mut world = World::new(asking(3, 5));
    world.run(2);
    world.lose("node-b");
    world.release(asking(3, 100_000));
    world.run(3);
    let says = &world.group.pending[0].reason.message;
    assert!(
        says.contains("it asks for cpu 100 ") && says.contains("no node has more left than cpu 4 "),
        "{says}"
    );
}
