//! Uploads in chunks, resumed, verified; fetched by the nodes that run them.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use model::compute::{ArtifactForm, ArtifactRef, Work};
use model::ids::Digest;
use model::units;
use sha2::{Digest as _, Sha256};

use crate::cloud::*;
use crate::held::{Disk, Held};

#[tokio::test]
async fn an_artifact_is_uploaded_verified_and_fetched_where_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    let bytes: Vec<u8> = (0..2_500_000_u32)
        .map(|index| (index % 251) as u8)
        .collect();
    let digest = Digest(Sha256::digest(&bytes).into());
    let size = units::Bytes(bytes.len() as u64);

    let begun = cloud.client.begin_upload(&digest, size).await.unwrap();
    assert_eq!((begun.received, begun.complete), (units::Bytes(0), false));
    cloud
        .client
        .upload_chunk(&digest, 0, Bytes::copy_from_slice(&bytes[..1 << 20]))
        .await
        .unwrap();
    let again = cloud
        .client
        .upload_chunk(&digest, 0, Bytes::from_static(b"x"))
        .await;
    assert_eq!(code(again), "wrong-offset");
    let resumed = cloud.client.begin_upload(&digest, size).await.unwrap();
    assert_eq!(resumed.received.0, 1 << 20);
    let mut at = 1 << 20;
    let mut state = resumed;
    while at < bytes.len() {
        let end = (at + (1 << 20)).min(bytes.len());
        state = cloud
            .client
            .upload_chunk(&digest, at as u64, Bytes::copy_from_slice(&bytes[at..end]))
            .await
            .unwrap();
        at = end;
    }
    assert!(state.complete);
    assert!(
        cloud
            .client
            .begin_upload(&digest, size)
            .await
            .unwrap()
            .complete
    );

    let mut app = service(1);
    app.work = Work::Process {
        run: vec!["./app".to_owned()],
        artifact: Some(ArtifactRef {
            digest,
            form: ArtifactForm::Folder,
            size,
        }),
    };
    cloud.apply(&apply_of(&[("app", app)])).await;
    let home = cloud.ready("app", 1).await[0].node.clone().unwrap();
    for node in &nodes {
        let answer = node.client.artifact(&digest, 2_000_000).await;
        if node.name == home {
            let got = answer
                .unwrap()
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes();
            assert_eq!(got, bytes[2_000_000..]);
        } else {
            assert_eq!(code(answer.map(drop)), "not-placed-here");
        }
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let digest = Digest(Sha256::digest(b"right").into());
    cloud
        .client
        .begin_upload(&digest, units::Bytes(5))
        .await
        .unwrap();
    assert_eq!(
        code(
            cloud
                .client
                .upload_chunk(&digest, 0, Bytes::from_static(b"wrong"))
                .await
        ),
        "artifact-corrupt"
    );
    assert!(
        !cloud
            .client
            .begin_upload(&digest, units::Bytes(5))
            .await
            .unwrap()
            .complete
    );
    let large = Bytes::from(vec![0; (1 << 20) + 1]);
    assert_eq!(
        code(cloud.client.upload_chunk(&digest, 0, large).await),
        "too-large"
    );
}

#[tokio::test]
async fn an_artifact_is_none_before_it_is_in_the_audit_log() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let memory = Memory::Other(Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    for text in ["", "hello"] {
        let bytes = Bytes::from_static(text.as_bytes());
        let digest = Digest(Sha256::digest(&bytes).into());
        let size = units::Bytes(bytes.len() as u64);
        let kept = || async {
            let records = cloud.client.audit(100).await.unwrap().items;
            let mut of_it = records
                .iter()
                .filter(|record| record.on == digest.to_string());
            of_it.any(|record| record.action == "artifact.upload")
        };
        held.set(Disk::Refuses("audit/"));
        let begun = cloud.client.begin_upload(&digest, size).await;
        let last = match text {
            "" => begun,
            _ => cloud.client.upload_chunk(&digest, 0, bytes.clone()).await,
        };
        assert_eq!(code(last), "store-unavailable", "{text:?}");
        let gotten = cloud.client.artifact(&digest, 0).await;
        assert_eq!(code(gotten.map(drop)), "artifact-missing", "{text:?}");
        held.set(Disk::Works);
        // All of it is there already: who asks again goes on from there.
        assert!(!kept().await);
        let again = cloud.client.begin_upload(&digest, size).await.unwrap();
        assert!(again.complete, "{text:?}");
        assert!(kept().await, "{text:?}");
        cloud.client.artifact(&digest, 0).await.unwrap();
    }
}
