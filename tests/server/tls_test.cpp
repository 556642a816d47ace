// TLS and client certificates, with the openssl tool as the other side.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>

#include "server/client.h"
#include "server/harness.h"
#include "support/temp_folder.h"

namespace conclave::testing {
namespace {

struct Outcome {
  int code = -1;
  std::string out;
};

Outcome shell(const std::string& command) {
  Outcome outcome;
  FILE* pipe = popen(("( " + command + " ) 2>&1").c_str(), "r");
  std::array<char, 4096> bytes;
  for (size_t n; (n = fread(bytes.data(), 1, bytes.size(), pipe)) > 0;) outcome.out.append(bytes.data(), n);
  outcome.code = pclose(pipe);
  return outcome;
}

/// An authority, and certificates for the server and a client signed by it; a second client has another authority.
class Tls : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_.write("make.sh", R"(set -e
authority() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.pem -days 2 -subj /CN=$1; }
signed() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -out $1.csr -subj /CN=$1
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > $1.ext
  openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -out $1.pem -days 2 -extfile $1.ext; }
authority ours; authority theirs; signed server ours; signed friend ours; signed stranger theirs
)");
    const Outcome made = shell("cd " + folder_.path().string() + " && sh make.sh");
    ASSERT_EQ(made.code, 0) << made.out;
  }
  std::string file(const std::string& name) const { return (folder_.path() / name).string(); }
  ServerSetup setup(bool ask_clients) const {
    ServerSetup setup;
    setup.tls = {file("server.pem"), file("server.key"), ask_clients ? file("ours.pem") : ""};
    return setup;
  }
  /// What openssl sees of GET /health/live.
  Outcome ask(int port, const std::string& more = {}) const {
    return shell(fmt::format("printf 'GET /health/live HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' | timeout 20 openssl "
                             "s_client -connect 127.0.0.1:{} -quiet -verify_return_error -verify_hostname localhost -CAfile {} {}",
                             port, file("ours.pem"), more));
  }
  test::TempFolder folder_;
};

TEST_F(Tls, AnswersWhoTrustsItsCertificate) {
  TestServer s(setup(false));
  const Outcome good = ask(s.port());
  EXPECT_NE(good.out.find("HTTP/1.1 200 OK"), std::string::npos) << good.out;
  const Outcome plain = shell(fmt::format("printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n' | timeout 5 openssl s_client -connect "
                                          "127.0.0.1:{} -quiet -verify_return_error -CAfile {}", s.port(), file("theirs.pem")));
  EXPECT_EQ(plain.out.find("HTTP/1.1"), std::string::npos) << "another authority: " << plain.out;
}

TEST_F(Tls, AsksClientsForTheirCertificate) {
  TestServer s(setup(true));
  const auto with = [&](const std::string& who) { return ask(s.port(), fmt::format("-cert {0}.pem -key {0}.key", file(who))); };
  EXPECT_NE(with("friend").out.find("HTTP/1.1 200 OK"), std::string::npos) << with("friend").out;
  EXPECT_EQ(with("stranger").out.find("HTTP/1.1"), std::string::npos) << "signed by another authority";
  EXPECT_EQ(ask(s.port()).out.find("HTTP/1.1"), std::string::npos) << "no certificate";
}

TEST_F(Tls, RefusesOldProtocolsAndGarbage) {
  TestServer s(setup(false));
  EXPECT_EQ(ask(s.port(), "-tls1_1 -cipher ALL:@SECLEVEL=0").out.find("HTTP/1.1"), std::string::npos);
  EXPECT_NE(ask(s.port(), "-tls1_2").out.find("HTTP/1.1 200 OK"), std::string::npos);
  EXPECT_NE(ask(s.port(), "-tls1_3").out.find("HTTP/1.1 200 OK"), std::string::npos);
  for (const char* garbage : {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", ""})
    Client(s.port()).send(garbage);
  EXPECT_NE(ask(s.port()).out.find("HTTP/1.1 200 OK"), std::string::npos);
}

TEST_F(Tls, NewCertificatesAreReadAndBadOnesAreNot) {
  TestServer s(setup(false));
  s.server->handle_signals();
  const auto subject = [&] {
    return shell(fmt::format("timeout 20 openssl s_client -connect 127.0.0.1:{} < /dev/null | openssl x509 -noout -subject", s.port())).out;
  };
  EXPECT_NE(subject().find("CN = server"), std::string::npos) << subject();
  shell(fmt::format("cp {}.pem {}.pem && cp {}.key {}.key", file("friend"), file("server"), file("friend"), file("server")));
  raise(SIGHUP);
  EXPECT_TRUE(s.wait_until([&] { return subject().find("CN = friend") != std::string::npos; }));
  folder_.write("server.pem", "no certificate");
  raise(SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_NE(subject().find("CN = friend"), std::string::npos) << "the old one stays";
}

}  // namespace
}  // namespace conclave::testing
