#include "comm/cases.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace conclave::test {
namespace {

using Bytes = std::vector<std::byte>;
using Counts = std::vector<int64_t>;

/// Rank `rank`'s row of `size` floats: magnitudes differ so much that another order of additions gives other bits.
std::vector<float> row_of(int rank, size_t size, unsigned salt) {
  std::mt19937 random(salt * 1000003u + static_cast<unsigned>(rank) * 101u + static_cast<unsigned>(size));
  std::vector<float> row(size);
  for (float& x : row) x = std::ldexp(static_cast<float>(static_cast<int32_t>(random())), static_cast<int>(random() % 40) - 40);
  return row;
}

Bytes bytes_of(int from, int to, size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(static_cast<size_t>(from) * 31 + static_cast<size_t>(to) * 7 + i * 13);
  return bytes;
}

void require(bool holds, const Communicator& comm, const std::string& what) {
  if (!holds) throw std::runtime_error(fmt::format("rank {} of {} ({}): {}", comm.rank(), comm.size(), comm.name(), what));
}

void require_equal(const Communicator& comm, std::span<const float> got, std::span<const float> wanted, const std::string& call) {
  require(got.size() == wanted.size(), comm, call + ": size");
  for (size_t i = 0; i < got.size(); ++i)
    if (std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(wanted[i]) && !(std::isnan(got[i]) && std::isnan(wanted[i])))
      require(false, comm, fmt::format("{} of {}: element {} is {}, expected {}", call, got.size(), i, got[i], wanted[i]));
}

size_t at(int i) { return static_cast<size_t>(i); }

std::vector<float> sum_of(int ranks, size_t size, unsigned salt) {
  std::vector<float> sum = row_of(0, size, salt);
  for (int r = 1; r < ranks; ++r) {
    const std::vector<float> row = row_of(r, size, salt);
    for (size_t i = 0; i < size; ++i) sum[i] = sum[i] + row[i];
  }
  return sum;
}

void check_all_reduce(Communicator& comm, size_t size, unsigned salt) {
  std::vector<float> row = row_of(comm.rank(), size, salt);
  comm.all_reduce_sum(row);
  require_equal(comm, row, sum_of(comm.size(), size, salt), "all_reduce_sum");

  row = row_of(comm.rank(), size, salt + 1);
  comm.all_reduce_max(row);
  std::vector<float> greatest(size, -std::numeric_limits<float>::infinity());
  for (int r = 0; r < comm.size(); ++r) {
    const std::vector<float> theirs = row_of(r, size, salt + 1);
    for (size_t i = 0; i < size; ++i) greatest[i] = std::max(greatest[i], theirs[i]);
  }
  require_equal(comm, row, greatest, "all_reduce_max");
}

/// Uneven parts; every third is empty.
Counts uneven(int ranks, int64_t unit) {
  Counts counts(at(ranks));
  for (int r = 0; r < ranks; ++r) counts[at(r)] = r % 3 == 1 ? 0 : unit * (r + 1) + r;
  return counts;
}

void check_all_gather(Communicator& comm, int64_t unit) {
  const Counts counts = uneven(comm.size(), unit);
  Bytes wanted;
  for (int r = 0; r < comm.size(); ++r) {
    const Bytes part = bytes_of(r, 0, static_cast<size_t>(counts[at(r)]));
    wanted.insert(wanted.end(), part.begin(), part.end());
  }
  Bytes out(wanted.size());
  comm.all_gather(out, bytes_of(comm.rank(), 0, static_cast<size_t>(counts[at(comm.rank())])), counts);
  require(out == wanted, comm, fmt::format("all_gather, unit {}", unit));
}

void check_reduce_scatter(Communicator& comm, int64_t unit, unsigned salt) {
  const Counts counts = uneven(comm.size(), unit);
  size_t size = 0, begin = 0;
  for (int r = 0; r < comm.size(); ++r) {
    if (r == comm.rank()) begin = size;
    size += static_cast<size_t>(counts[at(r)]);
  }
  std::vector<float> out(static_cast<size_t>(counts[at(comm.rank())]));
  comm.reduce_scatter_sum(out, row_of(comm.rank(), size, salt), counts);
  const std::vector<float> sum = sum_of(comm.size(), size, salt);
  require_equal(comm, out, std::span(sum).subspan(begin, out.size()), "reduce_scatter_sum");
}

void check_all_to_all(Communicator& comm, int64_t unit) {
  const auto count = [&](int from, int to) { return (from + 2 * to) % 4 == 0 ? int64_t{0} : unit * (from + 1) + to; };
  Counts send, receive;
  Bytes in, wanted;
  for (int r = 0; r < comm.size(); ++r) {
    send.push_back(count(comm.rank(), r));
    receive.push_back(count(r, comm.rank()));
    const Bytes mine = bytes_of(comm.rank(), r, static_cast<size_t>(send.back())), theirs = bytes_of(r, comm.rank(), static_cast<size_t>(receive.back()));
    in.insert(in.end(), mine.begin(), mine.end());
    wanted.insert(wanted.end(), theirs.begin(), theirs.end());
  }
  Bytes out(wanted.size());
  comm.all_to_all(out, in, send, receive);
  require(out == wanted, comm, fmt::format("all_to_all, unit {}", unit));
}

void check_broadcast(Communicator& comm, int root, size_t size) {
  Bytes bytes = comm.rank() == root ? bytes_of(root, 3, size) : bytes_of(comm.rank(), 5, 17);
  comm.broadcast(bytes, root);
  require(bytes == bytes_of(root, 3, size), comm, fmt::format("broadcast of {} bytes from {}", size, root));
}

void check_special_values(Communicator& comm) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const bool last = comm.rank() == comm.size() - 1;
  std::vector<float> row{last ? kNan : 1, last ? kInf : 1, last ? -kInf : 1, comm.rank() == 0 ? kNan : 1, last ? 1e-45f : 0, -0.0f};
  std::vector<float> greatest = row;
  comm.all_reduce_sum(row);
  require_equal(comm, row, std::array{kNan, kInf, -kInf, kNan, 1e-45f, -0.0f}, "all_reduce_sum of special values");
  comm.all_reduce_max(greatest);
  require_equal(comm, greatest, std::array{kNan, kInf, comm.size() == 1 ? -kInf : 1, kNan, 1e-45f, -0.0f}, "all_reduce_max of special values");
}

}  // namespace

void check_collectives(Communicator& comm) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{3}, size_t{17}, size_t{1000}, size_t{2048}, size_t{4096}, size_t{4097}, size_t{16385}, size_t{100003}})
    check_all_reduce(comm, size, 1);
  for (const int64_t unit : {0, 1, 5, 1021, 30011}) {
    check_all_gather(comm, unit);
    check_reduce_scatter(comm, unit, 3);
    check_all_to_all(comm, unit);
  }
  for (int root = 0; root < comm.size(); ++root)
    for (const size_t size : {size_t{0}, size_t{1}, size_t{5000}, size_t{1000003}}) check_broadcast(comm, root, size);
  comm.barrier();
  check_special_values(comm);
}

void check_messages(Communicator& comm) {
  if (comm.size() == 1) return;
  const int next = (comm.rank() + 1) % comm.size(), last = (comm.rank() + comm.size() - 1) % comm.size();
  for (const size_t size : {size_t{0}, size_t{1}, size_t{70001}}) {
    // A few messages may be under way before anybody receives one.
    for (int i = 0; i < 3; ++i) comm.send(bytes_of(comm.rank(), i, size), next);
    for (int i = 0; i < 3; ++i) {
      Bytes got(size);
      comm.receive(got, last);
      require(got == bytes_of(last, i, size), comm, fmt::format("message {} of {} bytes", i, size));
    }
  }
  if (comm.rank() == 0)
    for (int i = 0; i < 20; ++i) comm.send(bytes_of(0, i, 999), comm.size() - 1);
  if (comm.rank() == comm.size() - 1)
    for (int i = 0; i < 20; ++i) {
      Bytes got(999);
      comm.receive(got, 0);
      require(got == bytes_of(0, i, 999), comm, fmt::format("message {} of 20", i));
    }
}

void check_groups(Communicator& comm) {
  const auto pairs = comm.split(comm.rank() / 2, 0);
  require(pairs->rank() == comm.rank() % 2, comm, "rank in its pair");
  const auto reversed = comm.split(0, -comm.rank());
  require(reversed->size() == comm.size() && reversed->rank() == comm.size() - 1 - comm.rank(), comm, "rank in the reversed group");
  const auto uneven_group = comm.split(comm.rank() == 0 ? 1 : 0, comm.rank());
  const auto inner = uneven_group->split(uneven_group->rank() % 2, 0);
  for (int round = 0; round < 3; ++round)
    for (Communicator* group : {pairs.get(), reversed.get(), &comm, inner.get(), uneven_group.get()}) {
      check_all_reduce(*group, 100, 11);
      check_all_to_all(*group, 33);
      check_messages(*group);
    }
}

void check_random_calls(Communicator& comm, unsigned seed, int calls) {
  std::mt19937 random(seed);  // the same on every rank
  for (int i = 0; i < calls; ++i) {
    const unsigned kind = random() % 6;
    const auto size = static_cast<int64_t>(random() % (1u << (random() % 16)));
    const int root = static_cast<int>(random() % static_cast<unsigned>(comm.size()));
    if (kind == 0) check_all_reduce(comm, static_cast<size_t>(size), seed);
    else if (kind == 1) check_all_gather(comm, size);
    else if (kind == 2) check_reduce_scatter(comm, size, seed);
    else if (kind == 3) check_all_to_all(comm, size);
    else if (kind == 4) check_broadcast(comm, root, static_cast<size_t>(size));
    else comm.barrier();
  }
}

}  // namespace conclave::test
