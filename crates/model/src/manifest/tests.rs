//! The reader as a table.

use super::*;

fn read_text(text: &str) -> Result<Manifest, Vec<Problem>> {
    let source = Source {
        file: "mainland.yaml",
        text,
    };
    read(source, None)
}

#[test]
fn the_example_is_read() {
    let text = include_str!("../../../../examples/first/mainland.yaml");
    let manifest = read_text(text).unwrap();
    assert_eq!(manifest.services.len(), 3);
    println!("{manifest:#?}");
}
