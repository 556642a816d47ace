# make run                                   build and answer a question with the demo model
# make run MODEL=<folder> PROMPT="..."       the same for any local checkpoint
# make build                                 the program: build/conclave
# make test                                  everything: unit, golden and command-line tests, sanitizers, fuzz smoke run
# make test-clients                          the official openai client against `conclave serve` (installs Python packages into .venv-clients)
# make test-lm-eval                          lm-evaluation-harness against `conclave serve` and its own backend (installs PyTorch into .venv-clients)
# make bench                                 micro-benchmarks of the kernels
MODEL ?= models/demo-mixtral
PROMPT ?=
ARGS ?=
FUZZ_SECONDS ?= 10
CTEST = ctest --output-on-failure --no-tests=error -j2

.PHONY: run build test test-unit test-sanitized test-sanitized-all test-fuzz test-vectors test-clients test-lm-eval check bench clean

run: build
ifeq ($(PROMPT),)
	@build/conclave run $(MODEL) --prompt-file $(if $(wildcard $(MODEL)/question.txt),$(MODEL),models/demo-mixtral)/question.txt $(ARGS)
else
	@build/conclave run $(MODEL) --prompt '$(subst ','\'',$(PROMPT))' $(ARGS)
endif

build:
	@tools/setup/packages.sh build
	@[ -f build/build.ninja ] || cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release
	@cmake --build build --target conclave

test: check test-unit test-sanitized test-fuzz test-vectors

# Rules of the source tree that a script can see.
check:
	@tools/setup/packages.sh test
	python3 tools/check_includes.py

test-unit:
	@tools/setup/packages.sh test
	cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_TESTS=ON
	cmake --build build
	cd build && $(CTEST)

# The tests of everything that reads untrusted input, with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and the fuzz targets.
SANITIZED = cmake -G Ninja -S . -B build-sanitized -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
  -DCONCLAVE_TESTS=ON -DCONCLAVE_SANITIZE=ON -DCONCLAVE_FUZZ=ON

test-sanitized:
	@tools/setup/packages.sh test
	$(SANITIZED)
	cmake --build build-sanitized --target parser_tests fuzz_targets
	cd build-sanitized && $(CTEST) -L parsers

# Every test but the slowest under the sanitizers: some 30 minutes.
test-sanitized-all:
	@tools/setup/packages.sh test
	$(SANITIZED)
	cmake --build build-sanitized --target sanitized_tests
	cd build-sanitized && $(CTEST) -L 'parsers|sanitized'

test-fuzz: test-sanitized
	python3 tools/run_fuzzers.py build-sanitized/fuzz fuzz/corpus --seconds $(FUZZ_SECONDS)

# Larger sets of tokenizer and template vectors, where a folder of them lies beside the project.
test-vectors: test-unit
	@if [ -f ../shared/tools/check_text.py ]; then python3 ../shared/tools/check_text.py build/conclave ../shared/golden ../shared/tokenizers; \
	else echo "test-vectors: skipped, no folder of additional vectors beside the project"; fi

# The official client against the program itself; needs Python packages, which it puts into .venv-clients.
test-clients: build
	@[ -x .venv-clients/bin/python ] || python3 -m venv .venv-clients
	.venv-clients/bin/pip install -q --disable-pip-version-check -r tests/clients/requirements.txt
	.venv-clients/bin/python tests/clients/openai_client.py build/conclave models/demo-mixtral

# lm-evaluation-harness over `conclave serve` against its own backend; needs PyTorch and transformers, which it puts into .venv-clients too.
test-lm-eval: build
	@[ -x .venv-clients/bin/python ] || python3 -m venv .venv-clients
	.venv-clients/bin/pip install -q --disable-pip-version-check -r tests/clients/requirements-lm-eval.txt
	OMP_NUM_THREADS=1 .venv-clients/bin/python tests/clients/lm_eval_compare.py build/conclave tests/data/golden/mixtral-gqa tests/data/eval

bench:
	@tools/setup/packages.sh bench
	cmake -G Ninja -S . -B build -DCMAKE_BUILD_TYPE=Release -DCONCLAVE_BENCH=ON
	cmake --build build --target kernel_bench
	build/bench/kernel_bench $(ARGS)

clean:
	rm -rf build build-sanitized
