#include "text/chat_defaults.h"

namespace conclave {
namespace {

// DeepSeek-MoE-16B chat and DeepSeek-V2(-Lite) chat: tokenizer_config.json of the published checkpoints.
constexpr std::string_view kDeepSeek = R"({{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\n\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant: ' + message['content'] + eos_token }}
    {%- elif message['role'] == 'system' %}
        {{- message['content'] + '\n\n' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and system roles are supported!') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %})";

// DeepSeek-V3 and R1, conversation part: BOS, all system texts joined by blank lines, then the turns.
constexpr std::string_view kDeepSeekV3 = R"({{ bos_token }}
{{- messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + message['content'] + eos_token }}
    {%- elif message['role'] != 'system' %}
        {{- raise_exception('Only user, assistant and system roles are supported!') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜>' }}
{%- endif %})";

// Mixtral-8x7B-Instruct-v0.1, the later published form: the system text opens the first user turn.
constexpr std::string_view kMixtral = R"({%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported, with the exception of an initial optional system message!') }}
    {%- endif %}
{%- endfor %})";

// ERNIE-4.5: default of the Hugging Face conversion script.
constexpr std::string_view kErnie = R"({{ cls_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant: ' + message['content'] + sep_token }}
    {%- elif message['role'] == 'system' %}
        {{- message['content'] + '\n' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and system roles are supported!') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant: ' }}
{%- endif %})";

}  // namespace

const FamilyTemplate* find_family_template(std::string_view model_type) {
  static const std::vector<FamilyTemplate> kFamilies = [] {
    const std::vector<std::pair<std::string_view, std::string_view>> deepseek = {
        {"bos_token", "<｜begin▁of▁sentence｜>"}, {"eos_token", "<｜end▁of▁sentence｜>"}};
    return std::vector<FamilyTemplate>{
        {"deepseek", kDeepSeek, deepseek},
        {"deepseek_v2", kDeepSeek, deepseek},
        {"deepseek_v3", kDeepSeekV3, deepseek},
        {"mixtral", kMixtral, {{"bos_token", "<s>"}, {"eos_token", "</s>"}}},
        {"ernie4_5_moe", kErnie, {{"cls_token", "<|begin_of_sentence|>"}, {"sep_token", "<|end_of_sentence|>"}}},
    };
  }();
  for (const FamilyTemplate& family : kFamilies) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

}  // namespace conclave
