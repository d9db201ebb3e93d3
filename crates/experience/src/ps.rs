//! `ps`: instances, from the server or with it gone from the nodes of this machine.

use api::client::{Client, Transport};
use api::wire::{self, InstanceView};
use model::ids::ResourceName;

use crate::failure::Failure;
use crate::output::{Output, dash, table, word};
use crate::{Globals, notice};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With the server gone it shows what the nodes of this machine say.\n\n\
                  Examples:\n  mainland ps\n  mainland ps -o json | jq '.[] | select(.ready | not)'"
)]
pub struct Ps {
    /// Only this service, or this instance
    name: Option<ResourceName>,
    /// Those of every project
    #[arg(short = 'A', long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

impl Ps {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let listed = match self.all {
            true => every_instance(&client).await,
            false => match globals.project(&client).await {
                Ok(project) => client
                    .instances(&project)
                    .await
                    .map(|list| list.items)
                    .map_err(Failure::from),
                Err(failure) => Err(failure),
            },
        };
        let mut instances = match listed {
            Ok(instances) => instances,
            // Only silence is made up for: a refusal stands.
            Err(failure) if client.health().await.is_ok() => return Err(failure),
            Err(failure) => self.ask_nodes(globals).await.ok_or(failure)?,
        };
        if let Some(name) = &self.name {
            let all = instances.clone();
            instances.retain(|one| one.service == *name || one.name.as_str() == name.as_str());
            if instances.is_empty() {
                self.check_name(globals, &client, name, &all).await?;
            }
        }
        let none = match &self.name {
            Some(name) => format!("{name} has no instances; `mainland explain {name}` says why"),
            None => "there are no instances".to_owned(),
        };
        self.output
            .list(&instances, &none, || instance_table(&instances))?;
        Ok(0)
    }

    /// A service may have no instances; what is none is said to be none.
    async fn check_name(
        &self,
        globals: &Globals,
        client: &Client,
        name: &ResourceName,
        instances: &[InstanceView],
    ) -> Result<(), Failure> {
        let known = instances.iter().map(|one| one.name.as_str());
        let mut known: Vec<String> = known.map(str::to_owned).collect();
        known.extend(instances.iter().map(|one| one.service.to_string()));
        if let (false, Ok(project)) = (self.all, globals.project(client).await)
            && let Ok(status) = client.status_of_services(&project).await
        {
            known.extend(status.services.iter().map(|one| one.name.to_string()));
        }
        if known.iter().any(|known| known == name.as_str()) {
            return Ok(());
        }
        Err(Failure::missing(
            format!("there is no service or instance `{name}`"),
            name.as_str(),
            known.iter().map(String::as_str),
            "`mainland status` lists services, `mainland ps` instances",
        ))
    }

    /// What the nodes of this machine say themselves, when the servers are down. `None` where no node answers either.
    async fn ask_nodes(&self, globals: &Globals) -> Option<Vec<InstanceView>> {
        let project = globals.named_project().filter(|_| !self.all);
        let mut answered = false;
        let mut instances = Vec::new();
        for socket in globals.node_sockets() {
            let client = Client::new(Transport::Unix(socket), None);
            if let Ok(status) = client.get::<wire::NodeStatus>("/v1/status").await {
                answered = true;
                instances.extend(status.instances);
            }
        }
        if answered {
            notice("the server does not answer: this is what the nodes of this machine say");
        }
        instances.retain(|instance| {
            project
                .as_ref()
                .is_none_or(|project| *project == instance.project)
        });
        answered.then_some(instances)
    }
}

async fn every_instance(client: &Client) -> Result<Vec<InstanceView>, Failure> {
    let mut all = Vec::new();
    for project in client.projects().await?.items {
        all.extend(client.instances(&project).await?.items);
    }
    Ok(all)
}

fn instance_table(instances: &[InstanceView]) -> String {
    let row = |instance: &InstanceView| {
        let note = instance
            .reason
            .as_ref()
            .map_or(String::new(), |reason| reason.message.clone());
        let ready = if instance.ready { "yes" } else { "no" };
        [
            instance.name.to_string(),
            dash(&instance.node),
            dash(&instance.zone),
            word(&instance.state),
            ready.to_owned(),
            dash(&instance.pid),
            dash(&instance.address),
            instance.restarts.to_string(),
            instance.version.to_string(),
            note,
        ]
    };
    let head = [
        "NAME", "NODE", "ZONE", "STATE", "READY", "PID", "ADDRESS", "RESTARTS", "VERSION", "NOTE",
    ];
    table(head, instances.iter().map(row))
}
