//! `check`: what is wrong with a manifest, and what fails alone.

use std::path::Path;

use api::wire;
use model::manifest::{Manifest, Problem};
use serde::Serialize;

use super::Which;
use super::manifest::{broken, check_meant, parse};
use super::request::routes;
use super::values::Values;
use crate::artifact;
use crate::failure::Failure;
use crate::output::{Output, count, say};
use crate::{Globals, idempotency_key};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 1: something is wrong with it. -o prints {project, services, routes, secrets, environments, problems, warnings}: of each \
                  problem {file, line, column, path, message, hint}, of all else names or sentences. `project` is null where it can't be told.\n\n\
                  Examples:\n  mainland check -f shop/mainland.yaml\n  mainland check -o json | jq .problems"
)]
pub struct Check {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: Output,
}

/// What programs are told.
#[derive(Debug, Default, Serialize)]
struct Checked {
    project: Option<String>,
    services: Vec<String>,
    routes: Vec<String>,
    secrets: Vec<String>,
    environments: Vec<String>,
    problems: Vec<Wrong>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    file: String,
    line: usize,
    column: usize,
    path: String,
    message: String,
    hint: Option<String>,
}

impl From<&Problem> for Wrong {
    fn from(problem: &Problem) -> Self {
        Self {
            file: problem.file.clone(),
            line: problem.line,
            column: problem.column,
            path: problem.path.clone(),
            message: problem.message.clone(),
            hint: problem.hint.clone(),
        }
    }
}

impl Check {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let file = self.which.file()?;
        let manifest = match parse(&file, globals.env.as_deref())? {
            Ok(manifest) => manifest,
            Err(problems) => return Err(self.refuse(Checked::default(), &problems)?),
        };
        check_meant(&manifest, globals)?;
        let mut checked = Checked::of(&manifest);
        let values = Values::read(file.parent().unwrap_or(Path::new("")), &manifest.secrets);
        let mut wrong = wrong_files(&file, &manifest);
        wrong.extend(manifest.refused_values(&file.display().to_string(), &values.shapes()));
        if !wrong.is_empty() {
            return Err(self.refuse(checked, &wrong)?);
        }
        checked.warnings.extend(values.warnings());
        // Where a manifest is checked its secrets need not be.
        checked.warnings.extend(values.unread);
        if self.output.is_for_people() {
            for warning in &checked.warnings {
                say(&format!("warning: {warning}"))?;
            }
            say(&checked.in_words())?;
        }
        let weak = weak_points(globals, &manifest).await;
        if self.output.is_for_people() {
            for warning in weak {
                say(&format!("warning: {warning}"))?;
            }
            return Ok(0);
        }
        checked.warnings.extend(weak);
        self.output.print(&checked, String::new)?;
        Ok(0)
    }

    /// Tells programs as well, where they asked.
    fn refuse(&self, checked: Checked, problems: &[Problem]) -> Result<Failure, Failure> {
        if !self.output.is_for_people() {
            let checked = Checked {
                problems: problems.iter().map(Wrong::from).collect(),
                ..checked
            };
            self.output.print(&checked, String::new)?;
        }
        Ok(broken(problems))
    }
}

impl Checked {
    fn of(manifest: &Manifest) -> Self {
        let names = |names: Vec<&model::ids::ResourceName>| {
            names.into_iter().map(ToString::to_string).collect()
        };
        let routes = manifest.routes.iter();
        Self {
            project: Some(manifest.project.to_string()),
            services: names(manifest.services.keys().collect()),
            routes: routes.map(|(place, _)| place.clone()).collect(),
            secrets: names(manifest.secrets.keys().collect()),
            environments: manifest.environments.clone(),
            problems: Vec::new(),
            warnings: manifest.warnings.iter().map(ToString::to_string).collect(),
        }
    }

    fn in_words(&self) -> String {
        format!(
            "{} is good: {}, {}",
            self.project.as_deref().unwrap_or_default(),
            count(self.services.len() as u64, "service", "services"),
            count(self.routes.len() as u64, "route", "routes")
        )
    }
}

/// What fails alone. A cloud that answers knows its machines as well, and whether they could bear the loss of a zone; without one, what the file
/// itself tells.
async fn weak_points(globals: &Globals, manifest: &Manifest) -> Vec<String> {
    let specs = || {
        manifest
            .services
            .iter()
            .map(|(name, declared)| (name, &declared.spec))
    };
    let of_file = || {
        let counted = specs().map(|(name, spec)| (name, spec, spec.replicas));
        let mut weak = model::state::lone_services(counted);
        weak.extend(model::state::single_points(specs()));
        weak
    };
    let Ok(client) = globals.client() else {
        return of_file();
    };
    // Artifacts and the values of secrets change nothing of this, so none are sent.
    let apply = wire::Apply {
        services: specs()
            .map(|(name, spec)| (name.clone(), spec.clone()))
            .collect(),
        routes: routes(manifest),
        secrets: manifest.secrets.clone(),
        ..wire::Apply::default()
    };
    match client
        .apply(&manifest.project, &apply, true, &idempotency_key())
        .await
    {
        // It tells what an apply would bring; here all is told.
        Ok(applied) => {
            let mut all = of_file();
            let more = applied.warnings.into_iter();
            let more: Vec<_> = more.filter(|warning| !all.contains(warning)).collect();
            all.extend(more);
            all
        }
        Err(api::client::Error::Refused(problem)) if !matches!(problem.status, 401 | 403) => {
            let mut all = of_file();
            all.insert(
                0,
                format!(
                    "the cloud at {} would refuse it: {}",
                    client.transport(),
                    problem.title
                ),
            );
            all
        }
        Err(_) => of_file(),
    }
}

/// What could not be uploaded: it is not there, or a link in it leads out.
fn wrong_files(file: &Path, manifest: &Manifest) -> Vec<Problem> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    for (name, service) in &manifest.services {
        let Some(files) = &service.files else {
            continue;
        };
        for error in artifact::check(&folder.join(files), artifact::Limits::default()) {
            let message = match error {
                artifact::Error::Missing(_) => format!("`{files}` does not exist"),
                error => format!("`{files}` can't be uploaded: {error}"),
            };
            problems.push(Problem {
                file: file.display().to_string(),
                line: service.position.line,
                column: service.position.column,
                path: format!("services.{name}"),
                message,
                hint: None,
            });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_in_a_shape_that_stays() {
        let problem = Problem {
            file: "mainland.yaml".to_owned(),
            line: 3,
            column: 5,
            path: "services.web".to_owned(),
            message: "unknown key `replica`".to_owned(),
            hint: Some("did you mean `replicas`?".to_owned()),
        };
        let checked = Checked {
            project: Some("shop".to_owned()),
            services: vec!["web".to_owned()],
            problems: vec![Wrong::from(&problem)],
            ..Checked::default()
        };
        let told = serde_json::to_string_pretty(&checked).unwrap();
        expect_test::expect![[r#"
            {
              "project": "shop",
              "services": [
                "web"
              ],
              "routes": [],
              "secrets": [],
              "environments": [],
              "problems": [
                {
                  "file": "mainland.yaml",
                  "line": 3,
                  "column": 5,
                  "path": "services.web",
                  "message": "unknown key `replica`",
                  "hint": "did you mean `replicas`?"
                }
              ],
              "warnings": []
            }"#]]
        .assert_eq(&told);
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mainland.yaml");
        let text = "project: shop\nservices:\n  web: { run: [./web] }\n";
        std::fs::write(&file, text).unwrap();
        let manifest = parse(&file, None).unwrap().unwrap();
        let missing = wrong_files(&file, &manifest);
        let said = broken(&missing).message;
        let expected = "mainland.yaml:3:3: services.web: `./web` does not exist";
        assert!(said.contains(expected), "{said}");
        std::fs::write(folder.path().join("web"), "").unwrap();
        assert!(wrong_files(&file, &manifest).is_empty());
    }
}
