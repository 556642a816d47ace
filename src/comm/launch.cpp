#include "comm/launch.h"

#include <charconv>
#include <cstdlib>
#include <optional>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"

namespace conclave {
namespace {

using Variable = std::function<const char*(const char*)>;

std::optional<int> integer(const Variable& variable, const char* name, int least, int most) {
  const char* text = variable(name);
  if (!text || !*text) return std::nullopt;
  const std::string_view view(text);
  int value = 0;
  const auto [end, status] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (status != std::errc() || end != view.data() + view.size() || value < least || value > most)
    throw Error(Error::Kind::bad_input, fmt::format("variable {} is \"{}\"; wanted: a whole number from {} to {}", name, view, least, most));
  return value;
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// Every rank's text.
std::vector<std::string> texts_of_all(Communicator& comm, std::string_view mine) {
  const auto ranks = static_cast<size_t>(comm.size());
  const auto own_size = static_cast<int64_t>(mine.size());
  std::vector<int64_t> sizes(ranks);
  const std::vector<int64_t> ones(ranks, sizeof(int64_t));
  comm.all_gather(std::as_writable_bytes(std::span(sizes)), std::as_bytes(std::span(&own_size, 1)), ones);
  int64_t total = 0;
  for (const int64_t size : sizes) total += size;
  std::string all(static_cast<size_t>(total), '\0');
  comm.all_gather(std::as_writable_bytes(std::span(all)), bytes_of(mine), sizes);
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t size : sizes) {
    texts.push_back(all.substr(at, static_cast<size_t>(size)));
    at += static_cast<size_t>(size);
  }
  return texts;
}

}  // namespace

Rendezvous rendezvous_of(const Variable& variable) {
  constexpr int kMostRanks = 4096;
  Rendezvous place;
  const auto size = integer(variable, "WORLD_SIZE", 1, kMostRanks);
  const auto rank = integer(variable, "RANK", 0, kMostRanks - 1);
  if (!size && !rank) {
    place.size = 0;
    return place;
  }
  if (!size || !rank)
    throw Error(Error::Kind::bad_input, fmt::format("variable {} is set and {} is not; wanted: both, as torchrun sets them, or none",
                                                    size ? "WORLD_SIZE" : "RANK", size ? "RANK" : "WORLD_SIZE"));
  if (*rank >= *size) throw Error(Error::Kind::bad_input, fmt::format("variable RANK is {} and WORLD_SIZE {}; wanted: RANK from 0 to WORLD_SIZE - 1", *rank, *size));
  place.size = *size;
  place.rank = *rank;
  place.local_rank = integer(variable, "LOCAL_RANK", 0, kMostRanks - 1).value_or(*rank);
  place.port = integer(variable, "MASTER_PORT", 1, 65535 - kPortsTried).value_or(place.port);
  if (const char* address = variable("MASTER_ADDR"); address && *address) place.address = address;
  else if (*size > 1)
    throw Error(Error::Kind::bad_input, "variable WORLD_SIZE is set and MASTER_ADDR is not; wanted: the name or the address of rank 0's host");
  for (const char* name : {"CONCLAVE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"})
    if (const char* job = variable(name); job && *job) {
      place.job = job;
      break;
    }
  return place;
}

std::unique_ptr<Communicator> make_from_environment(const StartLimits& limits) {
  const auto set = [](const char* name) { return std::getenv(name) != nullptr; };
  if (set("OMPI_COMM_WORLD_SIZE") || set("PMIX_RANK") || set("PMI_RANK")) {
    if (auto mpi = make_mpi(limits.timeout_ms)) return mpi;
    throw Error(Error::Kind::unsupported, "this process was started by mpirun, and the program was built without MPI: install libopenmpi-dev and build "
                                          "again, or start the ranks with WORLD_SIZE, RANK and MASTER_ADDR");
  }
  Rendezvous place = rendezvous_of([](const char* name) { return std::getenv(name); });
  if (place.size <= 1) return make_self();
  place.timeout_ms = limits.timeout_ms;
  place.silence_ms = limits.silence_ms;
  place.start_ms = limits.start_ms;
  if (auto sockets = make_sockets(place)) return sockets;
  throw Error(Error::Kind::unsupported, fmt::format("variable WORLD_SIZE is {}, and the program was built without ZeroMQ: install libzmq3-dev and build again, "
                                                    "or start the ranks with mpirun", place.size));
}

void check_same_on_all_ranks(Communicator& comm, std::span<const Identity> identities) {
  auto mine = nlohmann::ordered_json::array();
  for (const Identity& identity : identities) mine.push_back({identity.name, identity.value, identity.place});
  const std::vector<std::string> all = texts_of_all(comm, mine.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  const auto first = parse_json(all[0], "rank 0's identities");
  for (size_t r = 1; r < all.size(); ++r) {
    const auto theirs = parse_json(all[r], "a rank's identities");
    for (size_t i = 0; i < std::max(first.size(), theirs.size()); ++i) {
      if (i >= first.size() || i >= theirs.size())
        throw Error(Error::Kind::bad_model, fmt::format("rank 0 and rank {} compare {} and {} digests: give all ranks the same build", r, first.size(), theirs.size()));
      const auto text = [&](const nlohmann::ordered_json& list, size_t field) { return list[i][field].get<std::string>(); };
      if (text(first, 0) != text(theirs, 0) || text(first, 1) != text(theirs, 1))
        throw Error(Error::Kind::bad_model,
                    fmt::format("{} differs between ranks: rank 0 has {} ({}), rank {} has {} ({}); give all ranks the same {}", text(first, 0), text(first, 1),
                                text(first, 2), r, text(theirs, 1), text(theirs, 2), text(first, 0)));
    }
  }
}

}  // namespace conclave
