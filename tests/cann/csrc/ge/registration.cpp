// libgraph.so: the classes of GE that MindSpore touches while its libraries are loaded (static registrations)
// and when a legacy primitive asks whether GE knows it. GE is built with the old ABI of std::string.
#define _GLIBCXX_USE_CXX11_ABI 0
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#define SIM_VISIBLE __attribute__((visibility("default")))

namespace ge {

class SIM_VISIBLE StatusFactory {
 public:
  static StatusFactory* Instance();

 private:
  std::map<uint32_t, std::string> err_desc_;
};
StatusFactory* StatusFactory::Instance() {
  static auto* factory = new StatusFactory;
  return factory;
}

class SIM_VISIBLE AscendString {
 public:
  AscendString(const char*);
  const char* GetString() const;

 private:
  std::shared_ptr<std::string> text_;
};
AscendString::AscendString(const char* text) {
  if (text) text_ = std::make_shared<std::string>(text);
}
const char* AscendString::GetString() const { return text_ ? text_->c_str() : ""; }

struct OperatorImpl {
  std::string name, type;
};

class SIM_VISIBLE Operator {
 public:
  Operator(const AscendString& name, const AscendString& type);
  Operator(const std::string& type);
  Operator(const std::string& name, const std::string& type);
  Operator(const char* type);
  Operator(const char* name, const char* type);
  virtual ~Operator() = default;
  std::string GetName() const;
  std::string GetOpType() const;
  uint32_t GetName(AscendString&) const;
  uint32_t GetOpType(AscendString&) const;

 private:
  std::shared_ptr<OperatorImpl> impl_;
};
static std::shared_ptr<OperatorImpl> make(std::string name, std::string type) {
  return std::make_shared<OperatorImpl>(OperatorImpl{name, type});
}
Operator::Operator(const AscendString& name, const AscendString& type)
    : impl_(make(name.GetString(), type.GetString())) {}
Operator::Operator(const std::string& type) : impl_(make("", type)) {}
Operator::Operator(const std::string& name, const std::string& type) : impl_(make(name, type)) {}
Operator::Operator(const char* type) : impl_(make("", type)) {}
Operator::Operator(const char* name, const char* type) : impl_(make(name, type)) {}
std::string Operator::GetName() const { return impl_ ? impl_->name : ""; }
std::string Operator::GetOpType() const { return impl_ ? impl_->type : ""; }
uint32_t Operator::GetName(AscendString& name) const {
  name = AscendString(GetName().c_str());
  return 0;
}
uint32_t Operator::GetOpType(AscendString& type) const {
  type = AscendString(GetOpType().c_str());
  return 0;
}

class SIM_VISIBLE OperatorFactory {
 public:
  static bool IsExistOp(const char* type);
  static bool IsExistOp(const std::string& type);
  static Operator CreateOperator(const char* name, const char* type);
  static Operator CreateOperator(const std::string& name, const std::string& type);
};
// Everything "exists"; an operator that aclop does not simulate ends with its name when it runs.
bool OperatorFactory::IsExistOp(const char*) { return true; }
bool OperatorFactory::IsExistOp(const std::string&) { return true; }
Operator OperatorFactory::CreateOperator(const char* name, const char* type) { return Operator(name, type); }
Operator OperatorFactory::CreateOperator(const std::string& name, const std::string& type) {
  return Operator(name, type);
}

SIM_VISIBLE uint32_t GEInitialize(const std::map<std::string, std::string>&) { return 0; }
SIM_VISIBLE uint32_t GEFinalize() { return 0; }

}  // namespace ge
