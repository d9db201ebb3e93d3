//! Tables of what is loaded, left out and refused.

use super::*;

fn here() -> Here {
    Here {
        roles: ["orders", "report"].map(str::to_owned).into(),
        extensions: ["vector", "uuid-ossp"].map(str::to_owned).into(),
        trusted: ["citext", "uuid-ossp"].map(str::to_owned).into(),
    }
}

fn scan(text: &str) -> Result<(String, LeftOut), Error> {
    let (mut scan, mut out) = (Scan::new(here()), Vec::new());
    for line in text.as_bytes().split_inclusive(|byte| *byte == b'\n') {
        scan.line(line, &mut out)?;
    }
    scan.end(&mut out)?;
    Ok((String::from_utf8(out).unwrap(), scan.left_out))
}

/// SQL in which a backslash is no command.
const DATA: [&str; 11] = [
    "select '\\! touch /tmp/x';\n",
    "select 'it''s \\! x', \"a \"\"\\! b\";\n",
    "select E'\\'\\! x', e'\\\\';\n",
    "select 1 -- \\! x\n;\n",
    "/* \\! /* \\! */ \\! */ select 1;\n",
    "create function f() returns text language sql as $$ select '\\! x' $$;\n",
    "do $a$ begin perform '$b$ \\! '; end $a$;\n",
    "copy t (a) from stdin;\n\\! not a command\n\\N\n'\n\\.\nselect 1;\n",
    "COPY public.t(a, b) FROM stdin WITH (FORMAT csv);\n\\! x\n\\.\n",
    "select $1$2;\n",
    "select a$b$ from t where c = 'x\n\\! y';\n",
];

#[test]
fn what_is_data_is_loaded_as_it_is() {
    for text in DATA {
        assert_eq!(scan(text), Ok((text.to_owned(), LeftOut::default())));
    }
    let long = format!("insert into t values ('{}\\! x');\n", "x".repeat(200_000));
    assert_eq!(scan(&long).unwrap().0, long);
}

#[test]
fn psqls_commands_are_refused_with_their_line() {
    for command in [
        "! touch /tmp/x",
        "!touch /tmp/x",
        "o |cat",
        "o /tmp/x",
        "i /etc/passwd",
        "ir x",
        "include x",
        "copy t from program 'id'",
        "copy t from '/etc/passwd'",
        "w |cat",
        "setenv A b",
        "cd /",
        "set A `id`",
        "set A b",
        "gset",
        "gexec",
        "g |cat",
        "getenv A B",
        "lo_import /etc/passwd",
        "password",
        "echo `id`",
        "prompt x",
        "q",
        "watch",
        "e",
        "",
        "\\ select 1",
    ] {
        for before in ["", "select 1 "] {
            let text = format!("select 1;\n{before}\\{command}\n");
            let refused = scan(&text).unwrap_err();
            assert!(
                matches!(refused, Error::Command { line: 2, .. }),
                "{text}: {refused}"
            );
        }
        // Whatever stands before, it is found.
        for data in DATA {
            let text = format!("{data}\\{command}\n");
            scan(&text).expect_err(&text);
        }
    }
    let shown = scan("\\! x").unwrap_err().to_string();
    assert!(
        shown.starts_with("line 1: the psql command \\! is refused"),
        "{shown}"
    );
}

#[test]
fn what_is_not_the_databases_is_left_out_and_counted() {
    for (text, what, names) in [
        (
            "ALTER TABLE public.t OWNER TO alice;\n",
            "OWNER TO",
            "(alice)",
        ),
        (
            "ALTER FUNCTION f(a int) OWNER TO \"Old Owner\";\n",
            "OWNER TO",
            "(Old_Owner)",
        ),
        (
            "GRANT SELECT ON TABLE t TO alice;\n",
            "GRANT or REVOKE",
            "(alice)",
        ),
        (
            "GRANT SELECT ON TABLE t TO orders, bob WITH GRANT OPTION;\n",
            "GRANT or REVOKE",
            "(bob)",
        ),
        (
            "REVOKE ALL ON TABLE t FROM postgres;\n",
            "GRANT or REVOKE",
            "(postgres)",
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE alice IN SCHEMA public GRANT SELECT ON TABLES TO report;\n",
            "GRANT or REVOKE",
            "(alice)",
        ),
        ("SET ROLE alice;\n", "SET ROLE", ""),
        ("SET SESSION AUTHORIZATION 'alice';\n", "SET ROLE", ""),
        ("RESET SESSION AUTHORIZATION;\n", "SET ROLE", ""),
        (
            "SET default_tablespace = fast;\n",
            "statement about roles",
            "",
        ),
        (
            "CREATE DATABASE shop WITH TEMPLATE = template0;\n",
            "statement about roles",
            "",
        ),
        ("CREATE ROLE alice;\n", "statement about roles", ""),
        (
            "CREATE EXTENSION IF NOT EXISTS adminpack WITH SCHEMA pg_catalog;\n",
            "statement about extensions",
            "(adminpack)",
        ),
        (
            "create extension \"plpython3u\";\n",
            "statement about extensions",
            "(plpython3u)",
        ),
        (
            "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f();\n",
            "statement that only a superuser",
            "",
        ),
        (
            "ALTER EVENT TRIGGER e DISABLE;\n",
            "statement that only a superuser",
            "",
        ),
        (
            "CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert');\n",
            "statement that only a superuser",
            "",
        ),
        (
            "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p;\n",
            "statement that only a superuser",
            "",
        ),
        (
            "ALTER SYSTEM SET work_mem = '1GB';\n",
            "statement that only a superuser",
            "",
        ),
        ("DROP TABLESPACE fast;\n", "statement about roles", ""),
        ("\\connect shop\n", "\\connect", "(shop)"),
    ] {
        let (out, left_out) = scan(text).unwrap();
        assert_eq!(out, "\n", "{text}");
        let [line] = left_out.lines().try_into().unwrap();
        assert!(
            line.starts_with(&format!("left out 1 × {what}")) && line.ends_with(names),
            "{text}: {line}"
        );
    }
    for kept in [
        "GRANT SELECT ON TABLE t TO orders;\n",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC;\n",
        "SET default_tablespace = '';\n",
        "SELECT 'ALTER TABLE t OWNER TO alice;';\n",
        "CREATE USER MAPPING FOR public SERVER s;\n",
        "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;\n",
        "BEGIN;\n",
        "COMMIT;\n",
        "SET standard_conforming_strings = on;\n",
    ] {
        assert_eq!(scan(kept), Ok((kept.to_owned(), LeftOut::default())));
    }
    let many: String = (0..8)
        .map(|n| format!("ALTER TABLE t OWNER TO r{n};\n"))
        .collect();
    let lines = scan(&many).unwrap().1.lines();
    assert!(
        lines[0].starts_with("left out 8 ×")
            && lines[0].ends_with("(r0, r1, r2, r3, r4 and 3 more)"),
        "{lines:?}"
    );
}

#[test]
fn the_transaction_of_large_objects_is_left_out_and_no_other() {
    let head = |kind| format!("--\n-- Data for Name: X; Type: {kind}; Schema: -; Owner: -\n--\n\n");
    let work = "BEGIN;\n\nselect pg_catalog.lo_open('1', 131072);\n\nCOMMIT;\n";
    let objects = scan(&format!("{}{work}{}{work}", head("BLOBS"), head("TABLE"))).unwrap();
    assert_eq!(objects.0.matches("BEGIN;").count(), 1, "{}", objects.0);
    assert_eq!(
        objects.0.matches('\n').count(),
        18,
        "the lines are those of the file"
    );
    assert_eq!(objects.1, LeftOut::default());
}

#[test]
fn other_refusals_say_what_to_do() {
    for (text, expected) in [
        (
            "\\connect a\nselect 1;\n\\connect b\n",
            "line 3: after \\connect a comes \\connect b",
        ),
        ("COPY t FROM stdin; select 1;\n", "line 1: after COPY"),
        (
            "\n\nCOPY t FROM PROGRAM 'id';\n",
            "line 3: COPY … FROM PROGRAM",
        ),
        (
            "SET standard_conforming_strings = off;\n",
            "line 1: standard_conforming_strings",
        ),
        (
            "set local standard_conforming_strings=off;\n",
            "line 1: standard_conforming_strings",
        ),
        (
            "set \"standard_conforming_strings\"to 'off';\n",
            "line 1: standard_conforming_strings",
        ),
    ] {
        let refused = scan(text).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}");
    }
}

#[test]
fn what_has_no_semicolon_at_its_end_gets_one() {
    assert_eq!(
        scan("COMMENT ON EXTENSION hstore IS 'x';\n"),
        Ok(("\n".to_owned(), LeftOut::default()))
    );
    assert_eq!(scan("select 1").unwrap().0, "select 1\n;\n");
    assert_eq!(scan("select '1").unwrap().0, "select '1");
    assert_eq!(scan("select 1;\n-- end").unwrap().0, "select 1;\n-- end");
}

#[test]
fn an_extension_is_there_or_made_or_declared_first() {
    for (text, expected) in [
        (
            "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;\n",
            Ok("\n"),
        ),
        ("create extension \"uuid-ossp\";\n", Ok("\n")),
        ("DROP EXTENSION IF EXISTS vector;\n", Ok("\n")),
        ("ALTER EXTENSION vector UPDATE;\n", Ok("\n")),
        ("COMMENT ON EXTENSION vector IS 'x';\n", Ok("\n")),
        (
            "CREATE EXTENSION citext;\n",
            Ok("CREATE EXTENSION citext;\n"),
        ),
        (
            "DROP EXTENSION IF EXISTS postgis;\n",
            Ok("DROP EXTENSION IF EXISTS postgis;\n"),
        ),
        (
            "CREATE PUBLICATION p FOR TABLE t;\n",
            Ok("CREATE PUBLICATION p FOR TABLE t;\n"),
        ),
        (
            "select 1;\nCREATE EXTENSION IF NOT EXISTS postgis;\n",
            Err(
                "line 2: the extension `postgis` needs a superuser: declare it for this database, `extensions: [postgis]`",
            ),
        ),
    ] {
        match (scan(text), expected) {
            (Ok((out, left_out)), Ok(expected)) => {
                assert_eq!((out.as_str(), left_out), (expected, LeftOut::default()));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}
