//! Words of Compose files, and the word here for what they mean.

/// What to write instead of a key that other systems have, at this path of the file.
pub(super) fn our_word(path: &str, key: &str) -> Option<&'static str> {
    let of_service =
        path == "defaults" || path.starts_with("services.") && path.matches('.').count() == 1;
    match path {
        "" => of_file(key),
        _ if of_service => service(key),
        _ => None,
    }
}

fn of_file(key: &str) -> Option<&'static str> {
    Some(match key {
        "volumes" => "a volume is declared by its service: `volumes: { data: 1Gi }`",
        "networks" => "none is declared: a service calls what its `needs` name, and nothing else",
        "version" => "none is declared: leave the line out",
        "name" => "here it is `project`",
        "include" | "extends" => "a file is whole: `environments` holds what differs between them",
        "apiVersion" | "kind" | "metadata" | "spec" => {
            "this is no Kubernetes object: a file begins with `project` and has `services`, `databases`, `topics`, `routes`"
        }
        "ingress" | "ingresses" => "here it is `routes`",
        "configs" => "a file is part of a service's `files`; what is secret stands in `secrets`",
        _ => return None,
    })
}

fn service(key: &str) -> Option<&'static str> {
    Some(match key {
        "environment" => "here it is `env`: a mapping of variables",
        "env_file" => "write the variables into `env`, and what is secret into `secrets`",
        "healthcheck" => "here it is `health`: a path such as `/healthz`, or `{ exec: [...] }`",
        "depends_on" | "links" => {
            "here it is `needs`: it gives the address as `NAME_URL` and permits the call as well"
        }
        "networks" | "network_mode" => {
            "none is declared: a service calls what its `needs` name, and nothing else"
        }
        "expose" => {
            "the program listens on `$PORT`; `routes` leads to it from outside, and `needs` from other services"
        }
        "port" | "PORT" | "internal_port" | "containerPort" => {
            "the program listens on `$PORT`, which it is given; `ports` names further ones: `{ admin: http }`"
        }
        "command" | "entrypoint" | "cmd" => {
            "here it is `run`: a list of the program and its arguments"
        }
        "build" | "working_dir" | "configs" => {
            "`files` names what is uploaded and becomes the working directory, `run` the program"
        }
        "secrets" => "a service takes a secret by its `needs`: `needs: [NAME: { file: true }]`",
        "deploy" => "here they are keys of the service: `replicas`, `cpu`, `memory`, `rollout`",
        "scale" | "instances" => "here it is `replicas`",
        "mem_limit" => "here it is `memory`",
        "cpus" | "cpu_shares" => "here it is `cpu`",
        "restart" => "what ends is always started again; `alive` restarts what hangs",
        "stop_grace_period" => "here it is `grace`",
        "container_name" | "hostname" => "its name is its key below `services`",
        "user" => "as root each service runs as a user of its own",
        "logging" => "what it prints is its log: `mainland logs`",
        "profiles" | "extends" => "use `defaults` and `environments`",
        _ => return of_machine(key),
    })
}

/// What others say of the machine around a program, and of how it is asked.
fn of_machine(key: &str) -> Option<&'static str> {
    Some(match key {
        "dns" | "dns_search" | "extra_hosts" => {
            "a service finds what its `needs` name; what runs elsewhere is declared as a service with `external`"
        }
        "privileged" | "cap_add" | "cap_drop" | "security_opt" | "devices" | "userns_mode" => {
            "as root each service runs as a user of its own, without privileges"
        }
        "tmpfs" | "shm_size" => {
            "a program may write to its working directory and to `/tmp`; what is to stay is in `volumes`"
        }
        "read_only" | "init" | "ipc" | "pid" | "cgroup_parent" | "sysctls" => {
            "there is nothing to set: leave the line out"
        }
        "ulimits" => "`pids` bounds its processes, `memory` its memory",
        "tty" | "stdin_open" => {
            "leave the line out; `mainland run --in SERVICE` and `mainland exec -it` give a terminal"
        }
        "stop_signal" => "it gets SIGTERM, and SIGKILL after `grace`",
        "platform" | "pull_policy" | "image_pull_policy" => {
            "what is uploaded must be built for the machine: leave the line out"
        }
        "resources" | "limits" | "requests" => {
            "here they are keys of the service: `cpu` and `memory`"
        }
        "readinessProbe" | "startupProbe" | "readiness" => "here it is `health`",
        "livenessProbe" | "liveness" => "here it is `alive`",
        "args" => "they stand in `run`, behind the program",
        "host" | "hosts" | "domain" | "domains" | "url" | "path" => {
            "`routes` leads to a service: `routes: { shop.localhost/: web }`"
        }
        _ => return None,
    })
}
