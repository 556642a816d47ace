#include "cli/signals.h"

#include <csignal>

namespace conclave {
namespace {

// A signal handler has no argument to carry state in: this flag is the one variable of the program with static storage.
volatile std::sig_atomic_t interrupted = 0;

void install(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void note(int) { interrupted = 1; }

// Without SA_RESTART, so that a read waiting for the user returns; the reset makes the second signal fatal.
void listen() { install(note, static_cast<int>(SA_RESETHAND)); }

}  // namespace

Interrupts::Interrupts() { clear(); }
Interrupts::~Interrupts() { install(SIG_DFL, 0); }
bool Interrupts::raised() const { return interrupted != 0; }

void Interrupts::clear() {
  interrupted = 0;
  listen();
}

}  // namespace conclave
