use super::*;

#[test]
fn only_cas_are_pinned() {
    let read = |name: &str| std::fs::read(tsa().folder.join(name)).unwrap();
    let (root, between, own) = (read("root.pem"), read("between.pem"), read("tsa.pem"));
    assert!(Authorities::from_pem(&root).is_ok());
    assert!(Authorities::from_pem(&[b"some words\n", &root[..], b"more\n", &between].concat()).is_ok());
    for (pem, words) in [
        (own.clone(), "certificate 1: it is not a CA's"),
        ([&root[..], &own].concat(), "certificate 2: it is not a CA's"),
        (Vec::new(), "no PEM certificate"),
        (read("tsa.key"), "no PEM certificate"),
        (root[..root.len() / 2].to_vec(), ""),
        (vec![b'x'; 2_000_000], "longer than"),
    ] {
        let error = Authorities::from_pem(&pem).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
