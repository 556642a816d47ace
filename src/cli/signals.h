#pragma once
// Ctrl-C. While an Interrupts object lives, the first SIGINT (or SIGTERM) only raises a flag that the work polls; a
// second one ends the process at once. One object at a time.

namespace conclave {

class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  bool raised() const;
  /// Forgets the flag and is ready for another one.
  void clear();
};

}  // namespace conclave
