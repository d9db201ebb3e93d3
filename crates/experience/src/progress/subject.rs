//! What is waited for.

use std::collections::{BTreeMap, BTreeSet};

use model::ids::{ProjectName, ReleaseNumber, ResourceName};

/// Services of a project.
#[derive(Debug, Clone)]
pub struct Subject {
    pub project: ProjectName,
    /// `None`: all of the project's.
    pub services: Option<BTreeSet<ResourceName>>,
    /// What the command released, which must not fail.
    pub(super) released: BTreeMap<ResourceName, ReleaseNumber>,
}

impl Subject {
    pub fn all_of(project: ProjectName) -> Self {
        Self {
            project,
            services: None,
            released: BTreeMap::new(),
        }
    }

    pub fn services(
        project: ProjectName,
        services: impl IntoIterator<Item = ResourceName>,
    ) -> Self {
        Self {
            project,
            services: Some(services.into_iter().collect()),
            released: BTreeMap::new(),
        }
    }

    /// With the releases that a command made.
    pub fn with_released(
        self,
        released: impl IntoIterator<Item = (ResourceName, ReleaseNumber)>,
    ) -> Self {
        Self {
            released: released.into_iter().collect(),
            ..self
        }
    }

    pub(super) fn has(&self, service: &ResourceName) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(service))
    }
}
