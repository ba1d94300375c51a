"""Attacks that stand as tests with what they attack."""

from __future__ import annotations

from tests.attacks.attack import Elsewhere

_CONTRACT = "tests/stores/test_contract.py::"
_LOCAL = "tests/stores/test_local.py::"
_S3 = "tests/stores/test_s3.py::"
_FRAMES = "tests/codecs/test_frames.py::"

ROWS = [
    Elsewhere(601, "22 unsafe keys, given to every method of every store",
              f"{_CONTRACT}test_unsafe_keys_are_refused_by_every_method", "refused (UsageError)"),
    Elsewhere(602, "links in a store's folder, read", f"{_LOCAL}test_symbolic_links_are_not_objects",
              "refused (NotFoundError)"),
    Elsewhere(603, "links in a store's folder, written through", f"{_LOCAL}test_nothing_is_written_through_a_link",
              "refused (StoreError)"),
    Elsewhere(604, "pipes in a store's folder", f"{_LOCAL}test_special_files_are_not_objects",
              "refused (NotFoundError)"),
    Elsewhere(605, "a server that redirects to another", f"{_S3}test_a_redirect_is_not_followed",
              "refused (StoreError)"),
    Elsewhere(606, "a server that ignores conditions of writes",
              f"{_S3}test_a_server_without_conditional_writes_is_refused_for_pushes", "refused (StoreError)"),
    Elsewhere(607, "an S3 listing of `../..`, absolute and unsafe keys",
              "tests/attacks/test_remotes.py::test_a_listing_of_hostile_keys_is_passed_over", "passed over"),
    Elsewhere(608, "an S3 listing of what lies elsewhere in the bucket",
              "tests/attacks/test_remotes.py::test_a_listing_of_another_prefix_is_passed_over", "passed over"),
    Elsewhere(609, "a flipped byte anywhere in a blob of any codec",
              f"{_FRAMES}test_a_flipped_byte_is_refused_or_gives_as_many_other_bytes", "refused (CodecError)"),
    Elsewhere(610, "a blob cut anywhere", f"{_FRAMES}test_every_cut_is_refused", "refused (CodecError)"),
    Elsewhere(611, "a flipped byte anywhere in a delta",
              "tests/test_delta.py::test_no_flipped_byte_goes_unnoticed_or_crashes", "refused (FormatError)"),
    Elsewhere(612, "names in files that steer a terminal",
              "tests/cli/test_commands.py::test_names_in_files_cannot_steer_the_terminal", "printed as escapes"),
]  # fmt: skip
